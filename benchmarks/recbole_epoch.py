"""Seconds an epoch of RecBole's SASRec (1.2.1) and of ours on one data set: see benchmarks/recbole_epoch.sh.

python benchmarks/recbole_epoch.py write ml-100k FOLDER       the training part in RecBole's format, and our own epoch
python benchmarks/recbole_epoch.py train FOLDER               with RecBole's Python: its epochs, nothing of ours needed
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

NAME = "deeprec"
NUM_EPOCHS = 2
SETTINGS = {
    "train_batch_size": 256,
    "MAX_ITEM_LIST_LENGTH": 20,
    "hidden_size": 64,
    "inner_size": 256,
    "loss_type": "CE",
    "train_neg_sample_args": None,
    "epochs": NUM_EPOCHS,
    "eval_step": 0,
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
    "use_gpu": False,
    "show_progress": False,
    "state": "INFO",
}


def write(dataset_name: str, folder: Path) -> None:
    """Write the users' sequences as RecBole's atomic file, and print our own seconds an epoch."""
    from trm.data.prepare import DatasetRef, prepare_dataset
    from trm.prepare_trm import load_cached_encoder
    from trm.train import train_trm
    from trm.train_config import TrainConfig

    dataset = prepare_dataset(DatasetRef(*dataset_name.split(":")), progress=False)
    target = folder / NAME
    target.mkdir(parents=True, exist_ok=True)
    with (target / f"{NAME}.inter").open("w", encoding="utf-8") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user in range(dataset.splits.num_users):
            example = dataset.splits.example("test", user)
            for place, item in enumerate((*example.history, example.target)):
                file.write(f"u{user}\ti{item}\t{place}\n")
    metrics = train_trm(
        dataset, load_cached_encoder(), TrainConfig(max_epochs=NUM_EPOCHS), out=folder / "trm", progress=False
    )
    print(json.dumps({"data set": dataset.name, "ours, s an epoch": metrics["training"]["epoch_seconds"]}))


def train(folder: Path) -> None:
    """Train RecBole's SASRec; it logs the seconds of each epoch."""
    from recbole.quick_start import run_recbole

    settings = {**SETTINGS, "data_path": str(folder), "checkpoint_dir": str(folder / "saved")}
    run_recbole(model="SASRec", dataset=NAME, config_dict=settings)


def main(arguments: list[str]) -> None:
    """Do what the first argument says."""
    match arguments:
        case ["write", dataset_name, folder]:
            write(dataset_name, Path(folder))
        case ["train", folder]:
            train(Path(folder))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
