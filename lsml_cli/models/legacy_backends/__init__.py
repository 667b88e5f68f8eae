"""Run backends written for label_studio_ml, label_studio.ml and htx unmodified."""
