"""`python benchmarks/nnunet.py TASK --minutes=15`: nnU-Net for some minutes on one of its folds.

The other side of the line of `docs/benchmarks.md` on a data set of one's own. Runs in an
environment with nnunetv2 2.8 and without jax, on the CPU. nnU-Net's own conversion, plan,
augmentation, loss and validation; its learning rate follows the clock instead of the epoch (0.01,
to the power of 0.9 down to zero as the minutes run out), so that its schedule is as complete
as that of a full training.
"""

import argparse
import json
import multiprocessing
import os
import re
import time
from pathlib import Path


def prepare(task: Path, work: Path) -> str:
    """Folders for nnU-Net under `work`, and the task converted and planned there.

    Args:
      task: a folder of the Medical Segmentation Decathlon, `TaskNN_Name`.
      work: made if it does not exist; what it already holds is used again.

    Returns the name of nnU-Net's data set.
    """
    number, name = re.fullmatch(r"Task(\d+)_(.*)", task.name).groups()
    for folder in ("raw", "preprocessed", "results"):
        (work / folder).mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{folder}"] = str(work / folder)
    from nnunetv2.dataset_conversion import convert_MSD_dataset
    from nnunetv2.experiment_planning import plan_and_preprocess_api as plans

    dataset = f"Dataset{int(number):03d}_{name}"
    if not (work / "preprocessed" / dataset / "nnUNetPlans_3d_fullres").is_dir():
        linked = work / task.name
        linked.mkdir(exist_ok=True)
        for entry in task.iterdir():
            if not (linked / entry.name).exists():
                (linked / entry.name).symlink_to(entry.resolve())
        (linked / "imagesTs").mkdir(exist_ok=True)  # the conversion lists it
        convert_MSD_dataset.convert_msd_dataset(str(linked), None, 2)
        plans.extract_fingerprints([int(number)], num_processes=2, show_progress_bar=False)
        plans.plan_experiments([int(number)])
        plans.preprocess([int(number)], configurations=["3d_fullres"], num_processes=[2])
    return dataset


def train(dataset: str, fold: int, minutes: float) -> dict:
    """nnU-Net's 3d_fullres trained for `minutes`; its mean scores of the held-out cases."""
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    torch.set_num_threads(multiprocessing.cpu_count())
    trainer = get_trainer_from_args(dataset, "3d_fullres", fold, device=torch.device("cpu"))
    trainer.on_train_start()
    trainer.network.train()
    start, steps, losses = time.monotonic(), 0, []
    while (done := (time.monotonic() - start) / (60 * minutes)) < 1:
        for group in trainer.optimizer.param_groups:
            group["lr"] = trainer.initial_lr * (1 - done) ** 0.9
        losses.append(float(trainer.train_step(next(trainer.dataloader_train))["loss"]))
        steps += 1
        if steps % 10 == 0:
            print(f"step {steps}, {done:.0%}, loss {sum(losses[-10:]) / 10:.3f}", flush=True)
    trainer.perform_actual_validation()
    summary = json.loads(Path(trainer.output_folder, "validation", "summary.json").read_text())
    return {
        "steps": steps,
        "batch": trainer.configuration_manager.batch_size,
        "patch": list(trainer.configuration_manager.patch_size),
        "cases": len(summary["metric_per_case"]),
        "dice_by_label": {label: row["Dice"] for label, row in summary["mean"].items()},
        "dice_foreground_mean": summary["foreground_mean"]["Dice"],
    }


def main() -> None:
    """Prints the scores as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", type=Path, help="folder TaskNN_Name of the MSD")
    parser.add_argument("--minutes", type=float, default=15, help="of training steps")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/nnunet"))
    args = parser.parse_args()
    dataset = prepare(args.task, args.work.absolute())
    print(json.dumps(train(dataset, args.fold, args.minutes)))


if __name__ == "__main__":
    main()
