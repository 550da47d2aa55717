"""How the model of the busy pictures is trained."""
