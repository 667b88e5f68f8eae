import argparse

from label_studio_ml.api import init_app
from model import Rules

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Label studio")
    parser.add_argument("-p", "--port", dest="port", type=int, default=9090)
    args = parser.parse_args()
    app = init_app(model_class=Rules)
    app.run(host="0.0.0.0", port=args.port)
else:
    app = init_app(model_class=Rules)
