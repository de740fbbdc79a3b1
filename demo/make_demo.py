"""Makes the demo's files: python3 make_demo.py FOLDER

FOLDER holds the trained networks (fm_*.onnx, me_*.onnx, txt_*.onnx), the Fashion-MNIST test images
(data/fmnist_test_x.npy uint8 [5000,28,28], data/fmnist_test_y.npy uint8 [5000]) and the texts (data/sms_calib_x.npy, …_y.npy).
Needs numpy and onnxruntime.
Prints what a cascade of them with fixed thresholds answers offline on the images that it wrote.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

IMAGES = 500
STAGES = {"tiny": ("fm_mlp", 0.95), "mid": ("fm_cnn_s", 0.8), "big": ("fm_cnn_l", 0.0)}


COPIES = {
    "segment-0": "me_seg0",
    "segment-1": "me_seg1",
    "segment-2": "me_seg2",
    "whole": "me_full",
    "spam-features": "txt_feat_c3",
    "spam-a": "txt_head_c3_lr_a",
    "spam-b": "txt_head_c3_lr_b",
    "spam-nb": "txt_head_c3_nb",
}


def main(source: Path, here: Path) -> None:
    x = np.load(source / "data/fmnist_test_x.npy")[:IMAGES]
    y = np.load(source / "data/fmnist_test_y.npy")[:IMAGES]
    images = (x.astype(np.float32) / np.float32(255)).reshape(-1, 1, 28, 28)
    np.save(here / "images.npy", images)
    np.save(here / "labels.npy", y)
    np.save(here / "texts.npy", np.load(source / "data/sms_calib_x.npy"))
    np.save(here / "spam.npy", np.load(source / "data/sms_calib_y.npy"))
    for name, file in COPIES.items():
        shutil.copyfile(source / f"{file}.onnx", here / f"{name}.onnx")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    answers = np.full(IMAGES, -1)
    open_rows = np.arange(IMAGES)
    for stage, (file, threshold) in STAGES.items():
        shutil.copyfile(source / f"{file}.onnx", here / f"{stage}.onnx")
        session = ort.InferenceSession(str(source / f"{file}.onnx"), options)
        (probs,) = session.run(["probs"], {"x": images[open_rows]})
        stops = probs.max(axis=1) >= threshold
        answers[open_rows[stops]] = probs[stops].argmax(axis=1)
        print(f"{stage}: answers {stops.sum()} of {len(open_rows)}")
        open_rows = open_rows[~stops]
    print(f"accuracy {np.mean(answers == y):.4f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent)
