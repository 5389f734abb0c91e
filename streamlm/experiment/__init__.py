"""An experiment: what its config asks for, whether that is sound, and whether its results hold."""
