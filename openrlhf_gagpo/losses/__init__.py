"""Policy losses: one file each, with the name it is chosen by."""
