"""`lsml serve`: the model behind Label Studio's ML-backend protocol, trained in the background."""
