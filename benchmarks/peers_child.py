"""One peer in a process of its own, inside the scratch environment that has anomalib.

    python peers_child.py NAME THREADS SHOTS

Nothing of ours is imported here. Prints one JSON line when it is set up, then runs one forward
pass for every line it reads and answers with the milliseconds.
"""

import json
import sys
import time
import warnings

import anomalib
import numpy as np
import torch

SIZE = 240
CORESET = 0.1  # anomalib's default sampling ratio


def pictures(count: int, seed: int, size: int = SIZE) -> torch.Tensor:
    """Smooth random pictures f32 (count,3,size,size), about normalised."""
    rng = np.random.default_rng(seed)
    small = torch.from_numpy(rng.standard_normal((count, 3, 30, 30)).astype(np.float32))
    return torch.nn.functional.interpolate(small, (size, size), mode="bilinear")


def patchcore(backbone: str, shots: int) -> torch.nn.Module:
    """anomalib's PatchCore at its defaults (layer2 + layer3, 9 neighbours, coreset of a tenth)."""
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    model = PatchcoreModel(layers=["layer2", "layer3"], backbone=backbone, pre_trained=False)
    model.train()
    model.feature_extractor.eval()
    width = model(pictures(1, 1)).shape[-1]
    if shots <= 8:
        model.embedding_store.clear()
        model(pictures(shots, 2))
        model.subsample_embedding(CORESET)
    else:  # choosing a coreset of many takes minutes and changes no time per picture
        model.embedding_store.clear()
        model.memory_bank = torch.randn(int(shots * (SIZE // 8) ** 2 * CORESET), width)
    return model.eval()


def winclip(shots: int) -> torch.nn.Module:
    """anomalib's WinCLIP, ViT-B-16-plus-240, windows of 2x2 and 3x3; random weights."""
    import open_clip

    original = open_clip.create_model_and_transforms

    def without_download(name: str, **_: object) -> object:
        return original(name, pretrained=None)

    open_clip.create_model_and_transforms = without_download
    from anomalib.models.image.winclip.torch_model import WinClipModel

    return WinClipModel("magnetic tile", pictures(shots, 2)).eval()


def efficientad() -> torch.nn.Module:
    """anomalib's EfficientAD-S; its statistics are stand-ins."""
    from anomalib.models.image.efficient_ad.torch_model import EfficientAdModel

    model = EfficientAdModel()
    for group in ("mean_std", "quantiles"):
        for name, value in getattr(model, group).items():
            value.data.fill_(1.0 if name in ("std", "qb_st", "qb_ae") else 0.0)
    return model.eval()


def build(name: str, shots: int) -> torch.nn.Module:
    """The peer by its short name."""
    if name == "winclip":
        return winclip(shots)
    if name == "efficientad":
        return efficientad()
    return patchcore({"patchcore18": "resnet18", "patchcore50": "wide_resnet50_2"}[name], shots)


def main() -> None:
    name, threads, shots = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    size = 256 if name == "efficientad" else SIZE  # its autoencoder takes nothing smaller
    model, picture = build(name, shots), pictures(1, 3, size)
    facts = {"anomalib": anomalib.__version__, "torch": torch.__version__}
    if name.startswith("patchcore"):
        facts["memory"] = list(model.memory_bank.shape)
    with torch.inference_mode():
        model(picture)
        print("ready " + json.dumps(facts), flush=True)
        for _ in sys.stdin:
            begin = time.perf_counter()
            model(picture)
            print(f"{(time.perf_counter() - begin) * 1e3:.3f}", flush=True)


if __name__ == "__main__":
    main()
