"""Use OpenMMLab's toolkits: what the object detector and the OCR share.

toolkit.py       import MMDetection and MMOCR without their output
configs.py       read a config by its path or packaged name; store it in a version
checkpoints.py   read weights without running code; store them in a version
inference.py     run batches of images through a model, on a device, in a precision
geometry.py      boxes in pixels -> boxes in percent
image_files.py   fetch the images of a training into files
schedule.py      length and learning rate of a training
train.py         train a model in a process of its own
train_worker.py  that process
install          the script that installs the toolkits
"""
