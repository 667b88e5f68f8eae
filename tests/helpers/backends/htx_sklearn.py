# In the form of htx with its adapter: a pipeline of scikit-learn, and one line.
from htx.adapters.sklearn import serve
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

if __name__ != "nothing":
    model = make_pipeline(TfidfVectorizer(), LogisticRegression(C=10))
    serve(model)
