"""Drawing: colours, fonts and shading of every picture."""
