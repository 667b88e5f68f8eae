"""OpenMMLab's toolkits, as the detector and the OCR share them.

toolkit.py      MMDetection and MMOCR, imported without their noise
configs.py      a config by path or by packaged name -> what a model is built of
checkpoints.py  weights in, weights out; a checkpoint is code unless it was read as weights alone
looking.py      batches of pictures through such a model, on a device, in a precision
pictures.py     tasks -> files that a training can read again and again
running.py      a config and a dataset -> trained weights, by mmengine's Runner
install         the script that installs all of it
"""
