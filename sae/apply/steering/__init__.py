"""How well directions detect a concept and steer towards it, at equal disturbance of the model."""
