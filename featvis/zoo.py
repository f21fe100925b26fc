"""Where subjects come from: the embedded networks, torchvision's classifiers, a reader's own module."""

from __future__ import annotations

import hashlib
import importlib
import pickle
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from featvis import cifar, photographs
from featvis._torchvision import torchvision
from featvis.errors import FeatvisError, listed, reason
from featvis.networks import cifarnet, photonet
from featvis.subjects import Preprocess, Subject

_NETWORKS: dict[str, tuple[Any, type[nn.Module], Sequence[str]]] = {
    "photonet": (photonet, photonet.PhotoNet, photographs.CLASSES),
    "cifarnet": (cifarnet, cifarnet.CifarNet, cifar.CLASSES),
}
EMBEDDED = tuple(_NETWORKS)
_SHOWN: dict[str, dict[str, Any]] = {  # what a chapter shows of an embedded network
    "photonet": {"examples": (1, 2, 12, 14, 16), "late": "inception5b.branch2.1"},
    "cifarnet": {"late": "layer4.0.conv2"},
}


# What checkpoints call the weights among other things
HOLDERS = ("state_dict", "model", "model_state_dict", "state_dict_ema", "net", "network")
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.")  # what wrappers put before a parameter's name


class Manipulation(NamedTuple):
    """How a file that holds a manipulated network is read; what it says of itself is text in its metadata."""

    plain: Callable[[dict[str, Tensor], str], dict[str, Tensor]]  # (its state, its text) -> the original's state
    restore: Callable[[Subject, dict[str, Tensor], str], Subject]  # (the original, its state, its text) -> the subject


MANIPULATED: dict[str, Manipulation] = {}  # by the key in the metadata; whoever manipulates enters it here


def load(
    name_or_module: str | nn.Module,
    weights: str | Path | None = None,
    device: str = "auto",
    *,
    preprocess: Preprocess | None = None,
    classes: Sequence[str] = (),
    name: str | None = None,
) -> Subject:
    """The subject "photonet", "cifarnet" or a classifier of torchvision ("googlenet", ...), or your own module.

    `weights` is a file (.safetensors or .pth), the name of a torchvision weights enum ("IMAGENET1K_V2"), "random"
    (seed 0), or None for the weights that the papers used. A module of your own needs its `preprocess`: nothing is
    assumed. A file that holds a manipulated network gives the manipulated subject. Raises FeatvisError for an unknown
    name, weights that do not fit, and files that hold code.
    """
    subject = _load(name_or_module, weights, device, preprocess, classes, name)
    for key, text in _metadata(weights).items():
        if key in MANIPULATED:
            return MANIPULATED[key].restore(subject, load_file(Path(str(weights))), text)
    return subject


def _load(
    name_or_module: str | nn.Module,
    weights: str | Path | None,
    device: str,
    preprocess: Preprocess | None,
    classes: Sequence[str],
    name: str | None,
) -> Subject:
    if isinstance(name_or_module, nn.Module):
        if preprocess is None:
            raise FeatvisError(
                "a module of your own needs its preprocessing: preprocess=Preprocess(size=(h, w), mean=..., std=...)."
            )
        if weights is not None:
            fit(name_or_module, read_weights(weights), str(weights))
        return Subject(name or type(name_or_module).__name__.lower(), name_or_module, preprocess, classes, device)
    if preprocess is not None or classes:
        raise FeatvisError(
            f"{name_or_module} has its own preprocessing and class names; preprocess=... and classes=... are for a "
            "module of your own."
        )
    if name_or_module in EMBEDDED:
        return _embedded(name_or_module, weights, device, name)
    if name_or_module not in torchvision_names():
        raise FeatvisError(
            f"there is no subject {name_or_module!r}; there are {listed(EMBEDDED)} and torchvision's classifiers "
            f"({listed(['googlenet', 'resnet50', 'vit_b_16'])}, ...): 'featvis subjects' lists them."
        )
    return _from_torchvision(name_or_module, weights, device, name)


def imported(path: str) -> nn.Module:
    """The network that MODULE:FUNCTION builds, called without arguments: code of your own, which is run.

    Raises FeatvisError if there is no such module or function, or if it builds no nn.Module.
    """
    module, _, name = path.partition(":")
    if "" not in sys.path:  # a console script does not look into the folder that it is called from
        sys.path.insert(0, "")
    try:  # a reader's own code may raise whatever it likes, and even leave
        build = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:
        raise FeatvisError(f"{path!r} cannot be imported ({reason(error)}); give MODULE:FUNCTION.") from error
    try:
        network = build()
    except (Exception, SystemExit) as error:
        raise FeatvisError(f"{path!r} could not build a network without arguments ({reason(error)}).") from error
    if not isinstance(network, nn.Module):
        raise FeatvisError(f"{path!r} built a {type(network).__name__}; it must give an nn.Module.")
    return network


def torchvision_names() -> list[str]:
    """The image classifiers that torchvision can build."""
    return torchvision.models.list_models(module=torchvision.models)


def trained(which: str) -> bool:
    """Whether an embedded network has its weights in the package."""
    return _NETWORKS[which][0].WEIGHTS.is_file()


def _embedded(which: str, weights: str | Path | None, device: str, name: str | None) -> Subject:
    module, build, classes = _NETWORKS[which]
    if weights is None and not trained(which):
        raise FeatvisError(
            f"{which} comes without trained weights so far: train it with `python -m featvis.networks.{which}`, "
            "or give weights=FILE or weights='random'."
        )
    if weights == "random":
        torch.manual_seed(0)
        network = build()
    else:
        network = build()
        file = module.WEIGHTS if weights is None else weights
        fit(network, read_weights(file, ", or 'random'"), str(file))
    preprocess = Preprocess((module.SIZE, module.SIZE), module.MEAN, module.STD)
    return Subject(name or which, network, preprocess, classes, device, **_SHOWN[which])


def _from_torchvision(builder: str, weights: str | Path | None, device: str, name: str | None) -> Subject:
    enum = torchvision.models.get_model_weights(builder)
    members = enum.__members__
    entry = members.get(str(weights)) or members.get("IMAGENET1K_V1") or enum.DEFAULT
    recipe = entry.transforms()
    size = recipe.crop_size[0]
    preprocess = Preprocess((size, size), tuple(recipe.mean), tuple(recipe.std))
    classes: Sequence[str] = entry.meta["categories"]
    # Only the pretrained inception networks rescale their input; a local file is taken to be such a one.
    if weights is None or str(weights) in members:
        network = _download(builder, entry)
    else:
        options = {"init_weights": False} if builder in ("googlenet", "inception_v3") else {}
        named = [*(member.name for member in enum), "random"]
        state = None if weights == "random" else read_weights(weights, f", or one of {listed(named)}")
        if state is not None and builder in ("googlenet", "inception_v3"):
            options |= {"transform_input": True, "aux_logits": any("aux" in k.lower() for k in state)}
        elif options:
            options |= {"aux_logits": False}
        torch.manual_seed(0)
        network = torchvision.models.get_model(builder, weights=None, **options)
        if state is not None:
            fit(network, state, str(weights))
    return Subject(name or builder, network, preprocess, classes, device)


def _download(builder: str, entry: Any) -> nn.Module:
    file = Path(torch.hub.get_dir()) / "checkpoints" / entry.url.rsplit("/", 1)[1]
    # torchvision checks what it downloads, but not a file that was put there by other means.
    expected = re.search(r"-([0-9a-f]{8,})\.", file.name)
    if expected and file.is_file():
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        if not digest.startswith(expected[1]):
            raise FeatvisError(
                f"{str(file)!r} is not what its name says (its SHA-256 starts with {digest[:8]}, not {expected[1]}): "
                f"it was cut short or changed; delete it, or fetch {entry.url} again."
            )
    try:
        return torchvision.models.get_model(builder, weights=entry)
    except (URLError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "invalid hash value" not in str(error):
            raise
        raise FeatvisError(
            f"the weights of {builder} could not be downloaded ({reason(error)}); fetch {entry.url} by other means and "
            f"put it at {file}, or give weights=PATH."
        ) from error


def _metadata(file: str | Path | None) -> dict[str, str]:
    """What a safetensors file says of itself; nothing for any other."""
    path = Path(str(file))
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    with safetensors.safe_open(path, "pt") as opened:
        said = opened.metadata() or {}
    if said:
        importlib.import_module("featvis.fooling")  # which enters itself in MANIPULATED
    return said


def read_weights(file: str | Path, or_else: str = "") -> dict[str, Tensor]:
    """The state dict in a .safetensors or .pth file, of the original where a manipulated network is saved.

    Code in a pickle is never executed. `or_else` says what might have been meant instead of a file.
    """
    path = Path(file)
    if not path.is_file():
        raise FeatvisError(f"there is no weights file {str(file)!r}; give a .safetensors or .pth file{or_else}.")
    try:
        if path.suffix == ".safetensors":
            loaded = load_file(path)
            for key, text in _metadata(path).items():
                loaded = MANIPULATED[key].plain(loaded, text) if key in MANIPULATED else loaded
            return loaded
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on pickles; what is wrong is said below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except safetensors.SafetensorError as error:
        raise FeatvisError(f"{str(file)!r} is not a whole safetensors file ({reason(error)}).") from error
    except pickle.UnpicklingError as error:
        raise FeatvisError(
            f"{str(file)!r} is no file of weights, or holds more than weights (a pickle with code in it is never "
            "executed); save network.state_dict() with safetensors or torch.save."
        ) from error
    except Exception as error:  # a damaged pickle fails in as many ways as there are opcodes
        if "TorchScript" in str(error):
            raise FeatvisError(
                f"{str(file)!r} is a TorchScript archive, which holds code that is never executed; save the "
                "state_dict() of its network with safetensors or torch.save."
            ) from error
        raise FeatvisError(f"{str(file)!r} is not a whole weights file ({reason(error)}).") from error
    for key in HOLDERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) and value.layout == torch.strided
        for key, value in state.items()
    ):
        found = listed(sorted(map(str, state)), 5) if isinstance(state, dict) else f"a {type(state).__name__}"
        raise FeatvisError(
            f"{str(file)!r} holds no state dict (parameter name -> tensor) but {found}; checkpoints keep one under "
            f"{listed(HOLDERS)}."
        )
    return state


def _without_prefix(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as the network's own, where all of them begin with what a wrapper put before them."""
    for prefix in WRAPPERS * 2:  # two may be nested
        if not state.keys() & own.keys() and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def fit(network: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load `state` into `network`, or say in one sentence what does not fit."""
    own = network.state_dict()
    state = _without_prefix(state, own)
    missing = [key for key in own if key not in state]
    extra = [key for key in state if key not in own]
    shapes = [
        f"{k} {tuple(state[k].shape)} for {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    if missing or extra or shapes:
        parts = [
            f"{word}: {listed(keys, 3)}"
            for word, keys in (("missing", missing), ("not in the network", extra), ("of another shape", shapes))
            if keys
        ]
        raise FeatvisError(f"the weights in {source!r} do not fit {type(network).__name__}; {'; '.join(parts)}.")
    network.load_state_dict(state)
