"""Our estimators inside other trainers. Each module names the trainer and the release that it was written for."""
