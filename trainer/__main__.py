"""`torchrun -m trainer RUN_DIR/config.json`: ties this rank's life to torchrun's, then runs
trainer.train.main.
"""

import ctypes
import os
import signal
import sys

# A SIGKILL on torchrun would orphan its workers, which go on training and writing: die with the
# parent instead. This stands before `import torch`, which takes seconds. The getppid check closes
# the gap between the fork and the prctl call.
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 = PR_SET_PDEATHSIG
    if os.getppid() == 1:
        sys.exit("trainer: the process that started this rank is gone")

from trainer.train import main

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: torchrun [...] -m trainer RUN_DIR/config.json")
    main(sys.argv[1])
