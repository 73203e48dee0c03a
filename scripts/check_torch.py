"""Stop the install if pip chose a CUDA build of torch on a machine without a GPU. Argument: the environment."""

import glob
import os
import runpy
import shutil
import sys

venv = sys.argv[1]
found = glob.glob(os.path.join(venv, "lib", "python*", "site-packages", "torch", "version.py"))
if not found:
    sys.exit(f"torch was not installed into {venv}: see pip's messages above.")
cuda = runpy.run_path(found[0]).get("cuda")
if cuda and shutil.which("nvidia-smi") is None:
    sys.exit(
        f"pip installed a CUDA {cuda} build of torch, but this machine has no GPU: remove {venv} and name an index "
        "that has the CPU build, as in `make TORCH_INDEX=https://download.pytorch.org/whl/cpu demo`."
    )
