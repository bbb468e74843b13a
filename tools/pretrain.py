"""Pretrain on several devices: `dimvl pretrain` as a script, for launchers that take one.

deepspeed --num_gpus 8 tools/pretrain.py pretrain.yaml deepspeed.stage=2
torchrun --nproc_per_node 8 tools/pretrain.py pretrain.yaml deepspeed.stage=2
"""

import sys

from dimvl.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "pretrain")
    main()
