#!/usr/bin/env python3
"""The Trainer of transformers with our callback; an arrow marks the only line that differs.

python scripts/examples/train_transformers.py --repo-id me/digits
torchrun --nproc-per-node 2 scripts/examples/train_transformers.py --repo-id me/digits --all-ranks
"""

from __future__ import annotations

import argparse
import os

from digits import Network, digits
from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from hf_mpwriter.integrations.transformers import HubTensorBoardCallback


def main() -> None:
    """Train, from the last checkpoint if there is one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo-id", required=True)
    parser.add_argument("--output", default="digits-transformers")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--all-ranks", action="store_true")
    options = parser.parse_args()
    set_seed(1)
    train, test = digits()
    arguments = TrainingArguments(
        options.output,
        num_train_epochs=options.epochs,
        per_device_train_batch_size=16,
        learning_rate=0.01,
        logging_steps=5,
        eval_strategy="epoch",
        save_strategy="epoch",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(
        Network(),
        arguments,
        train_dataset=train,
        eval_dataset=test,
        callbacks=[HubTensorBoardCallback(options.repo_id, all_ranks=options.all_ranks)],  # <- this line
    )
    checkpoint = get_last_checkpoint(options.output) if os.path.isdir(options.output) else None
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.evaluate()


if __name__ == "__main__":
    main()
