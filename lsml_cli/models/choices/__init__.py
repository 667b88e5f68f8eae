"""What the classifiers share: heads of a model that fill the <Choices> of a label config.

heads.py          heads meet controls, classes meet labels
lessons.py        annotated tasks -> what each head should learn
logistic.py       rows of numbers -> a linear head
probabilities.py  scores -> probabilities
"""
