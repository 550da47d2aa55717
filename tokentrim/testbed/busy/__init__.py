"""The testbed's busy pictures: large things on textured grounds, and small print on and between them."""
