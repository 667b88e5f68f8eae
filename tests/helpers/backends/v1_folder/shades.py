def shade(label):
    return 0.75 if label == "spam" else 0.5
