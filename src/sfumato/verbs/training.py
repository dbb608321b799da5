"""The verbs that make models: train, plan, resume, polish, distill, tune-sampler."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from sfumato.verbs.words import Count, Data, Folder, Method, Model, Size

if TYPE_CHECKING:
    from sfumato.engine.plan import Plan
    from sfumato.engine.tune import Tuning

__all__ = ["distill", "plan", "polish", "resume", "train", "tune_sampler"]


def train(
    data: Data,
    *,
    model: Model = "diffusion",
    time: str | None = None,
    steps: int | None = None,
    size: Size | None = None,
    network: Literal["unet", "dit"] | None = None,
    classes: bool = False,
    text: bool = False,
    encoder: str | None = None,
    facts: tuple[str, ...] = (),
    masks: bool = False,
    latent: bool = False,
    codec: str | None = None,
    out: str | None = None,
    seed: int = 0,
    batch: int | None = None,
    accumulate: int = 1,
    lr: float | None = None,
    optimizer: Literal["adamw", "muon"] | None = None,
    coupling: str = "independent",
    mirror: bool = False,
    resolution: int | None = None,
    skip_bad: bool = False,
    stream: bool = False,
    schedule: str = "cosine",
    parameterisation: str = "edm",
    weighting: str | None = None,
    likelihood: bool = False,
    learn_variance: bool = False,
    precision: Literal["fp32", "bf16"] | None = None,
    compile: bool = False,
    device: str | None = None,
    shard: bool = False,
    save_every: float = 30.0,
    resume: bool = False,
    tensorboard: bool = False,
    lora: str | None = None,
    rank: int | None = None,
    control: str | None = None,
    hint: Literal["edges", "mask"] | None = None,
    reader: str | None = None,
) -> Path:
    """Train a model on some data. What is not given is chosen, and each choice is printed with its reason.

    Started by `torchrun --nproc-per-node N -m sfumato train DATA`, N processes share each step's batch.

    Args:
        data: as for inspect.
        model: what learns them: diffusion, or to compare it with a gan, a vae or a ladder (a vae with latents at
            every level); plain-gan and dcgan are what a tutorial gives; an autoencoder learns a grid of latents.
        time: how long, such as 90s, 2m or 1h; the learning rate falls to 0 as it ends.
        steps: how long in steps, instead of a time.
        size: of the network.
        network: of pictures: unet (by default), or dit, a transformer over patches and words.
        classes: learn the classes of the data, to sample one of them.
        text: learn the captions of the data, to sample what a sentence says.
        encoder: a language model that reads them, and stays as it is: minilm, or the folder of an encoder of BERT's
            kind (config.json, tokenizer.json, model.safetensors); by default words are learned along.
        facts: columns of the data to learn, attributes and numbers, such as colour price: of metadata.csv or .jsonl, of
            .json in tar shards, of parquet.
        masks: learn to complete pictures of which a part is known, for edit --mask.
        latent: learn the latents of an autoencoder instead of pixels: for larger pictures. It is trained before, in
            half as much time as is asked for, in a folder of its own beside the run (-codec).
        codec: folder of a trained autoencoder (train --model autoencoder) to take for that.
        out: folder of the run; by default runs/ and the name of the data.
        seed: of weights, data order and noise.
        batch: examples a step, over all processes; by default found by timing a few.
        accumulate: parts in which each process computes its share of a step, to save memory.
        lr: learning rate.
        optimizer: adamw, or muon, which steps by whole matrices of the hidden layers.
        coupling: of noise and examples in a batch: independent, or immiscible (each its nearest, within its class).
        mirror: pictures may be turned, left for right: doubles them where that leaves them possible.
        resolution: longest side to which pictures are brought.
        skip_bad: leave unreadable files out instead of stopping at the first.
        stream: leave pictures on disk and read each when its turn comes; by default if memory is short for them.
        schedule: noise schedule: vp, cosine, subvp, ve, edm, flow or table.
        parameterisation: what the network predicts: x0, eps, score, v, flow or edm.
        weighting: what the loss weighs: elbo, sigmoid, min-snr, p2, learned, or as parameterisation; by default that.
        likelihood: train for a tight bound on log p(x), not for samples: weighting, noise levels and data for it.
        learn_variance: learn the noise of the way back too, for the sampler ancestral-learned.
        precision: of the arithmetic inside the network.
        compile: let torch.compile translate the network: minutes once, then faster steps; says what it costs.
        device: cpu, cuda or mps.
        shard: with torchrun, split the weights over the processes (FSDP2); by default each has all of them (DDP).
        save_every: seconds between checkpoints.
        resume: go on with the run if its folder exists, so that a scheduler may repeat the command.
        tensorboard: log for TensorBoard too, in the run's folder tensorboard/.
        lora: folder of a run that few of these data adapt, by a small change of its weights: a style from 20 pictures.
            What it is (model, size, classes, words) stays; time, steps, seed, batch, lr, device, save_every and out
            may be given.
        rank: of that change, matrix by matrix; by default 8.
        control: folder of a run that gets a branch beside it, which follows outlines (ControlNet); else as lora.
        hint: what it follows: edges (by default), or the mask of what is not ground.
        reader: folder of a run without classes that gets a reader of those of these data (classifier guidance), so that
            it can be asked for one; else as lora.

    Returns:
        The folder of the run.

    Raises:
        UserError: bad data, an impossible choice, or a folder that exists.
    """
    asked = dict(locals())
    upon = [asked.pop(name) for name in ("lora", "rank", "control", "hint", "reader")]
    if any(each is not None for each in upon):
        from sfumato.engine.adapt import Upon, adapt

        return adapt(asked, Upon(*upon))
    from sfumato.engine.asked import Asked
    from sfumato.engine.begin import begin

    return begin(Asked(**asked))


def plan(
    data: Data,
    *,
    model: Model = "diffusion",
    workers: int = 1,
    time: str | None = None,
    steps: int | None = None,
    size: Size | None = None,
    network: Literal["unet", "dit"] | None = None,
    classes: bool = False,
    text: bool = False,
    encoder: str | None = None,
    facts: tuple[str, ...] = (),
    masks: bool = False,
    batch: int | None = None,
    accumulate: int = 1,
    resolution: int | None = None,
    skip_bad: bool = False,
    stream: bool = False,
    likelihood: bool = False,
    learn_variance: bool = False,
    precision: Literal["fp32", "bf16"] | None = None,
    compile: bool = False,
    device: str | None = None,
    shard: bool = False,
    save_every: float = 30.0,
    out: str | None = None,
) -> Plan:
    """Say what a training run would take (time, memory, disk) from a few real steps, and keep nothing.

    Args:
        data: as for inspect.
        model: as for train.
        workers: processes that share the run; they are really started, here.
        time: as for train.
        steps: as for train.
        size: as for train.
        network: as for train.
        classes: as for train.
        text: as for train.
        encoder: as for train.
        facts: as for train.
        masks: as for train.
        batch: as for train.
        accumulate: as for train.
        resolution: as for train.
        skip_bad: as for train.
        stream: as for train.
        likelihood: as for train.
        learn_variance: as for train.
        precision: as for train.
        compile: as for train.
        device: as for train.
        shard: as for train.
        save_every: as for train.
        out: a JSON file for the figures.

    Raises:
        UserError: bad data, an impossible choice, or more workers than there is room for.
    """
    from time import perf_counter

    begun, asked = perf_counter(), dict(locals())
    from sfumato.engine.asked import Asked
    from sfumato.engine.plan import plan

    del asked["workers"], asked["out"], asked["perf_counter"]
    result = plan(Asked(**asked), workers, begun)
    if out is not None:
        result.write(Path(out))
    return result


def resume(run: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="RUN")]] = None) -> Path:
    """Go on with a run that was stopped or killed, exactly where its last checkpoint left it.

    Args:
        run: its folder; by default the one below runs/ that was written to last.

    Returns:
        The folder of the run.

    Raises:
        UserError: no such run, a damaged checkpoint, or the data have changed.
    """
    from sfumato.engine.begin import go_on

    return go_on(run)


def distill(
    run: Folder,
    *,
    calls: int = 1,
    method: Method | None = None,
    time: str | None = None,
    steps: int | None = None,
    out: str | None = None,
    seed: int = 0,
    batch: int | None = None,
    lr: float | None = None,
    device: str | None = None,
    save_every: float = 30.0,
) -> Path:
    """Teach a student of a trained run to draw in few network calls. It is a run like any other, and can be resumed.

    Args:
        run: folder of the teacher's run.
        calls: network calls for which it is taught: 1, 2, 4.
        method: matching (of the laws: SiD, ending in rivalry with an adversary; the usual one),
            consistency (ECT), direct (a step is several of the teacher's), progressive (halving the steps), alphaflow
            or meanflow (steps of any length, which keep the score too).
        time: how long, such as 90s, 10m or 1h; by default 10m.
        steps: how long in steps, instead of a time.
        out: folder of the student's run; by default runs/ and the teacher's name with the calls.
        seed: of data order and noise.
        batch: examples a step.
        lr: learning rate.
        device: cpu, cuda or mps.
        save_every: seconds between checkpoints.

    Returns:
        The folder of the student's run.

    Raises:
        UserError: no such run, one that is a student itself or cannot teach, an impossible choice, or a folder that
            exists.
    """
    asked = dict(locals())
    from sfumato.engine.distill import Wanted, distill

    del asked["run"], asked["out"]
    return distill(Path(run), Wanted(**asked), None if out is None else Path(out))


def polish(
    run: Folder,
    *,
    n: Count = 4000,
    time: str | None = None,
    steps: int | None = None,
    out: str | None = None,
    seed: int = 0,
    batch: int | None = None,
    lr: float | None = None,
    device: str | None = None,
    save_every: float = 30.0,
) -> Path:
    """Correct a trained run: train it a little on its own samples, and step back from where that leads (Neon).

    How far back is what brings samples nearest to training examples; the run is left as it is if nothing does.

    Args:
        run: folder of a trained run.
        n: own samples to train on.
        time: how long, such as 90s or 2m; by default 1m.
        steps: how long in steps, instead of a time.
        out: folder of the corrected run; by default runs/ and the run's name with -polished.
        seed: of the samples, their order and noise.
        batch: samples a step.
        lr: learning rate.
        device: cpu, cuda or mps.
        save_every: seconds between checkpoints.

    Returns:
        The folder of the corrected run, a run like any other.

    Raises:
        UserError: no such run, a student for few calls, an impossible choice, or a folder that exists.
    """
    asked = dict(locals())
    from sfumato.engine.polish import Polish, polish

    del asked["run"], asked["out"]
    return polish(Path(run), Polish(**asked), None if out is None else Path(out))


def tune_sampler(
    run: Folder, *, calls: int = 5, paths: int = 256, rounds: int = 240, seed: int = 0, device: str | None = None
) -> Tuning:
    """Learn a way back of few network calls for a trained run, without training its network.

    It is kept with the run, and used by `sfumato sample RUN --steps CALLS` by default. Where the data are at hand, it
    goes as far beyond what was learned as brings samples nearest to training examples.

    Args:
        run: folder of a trained run.
        calls: network calls, at least 2.
        paths: from noise to data in 48 steps to learn from.
        rounds: steps of the optimiser.
        seed: of the noise.
        device: cpu, cuda or mps.

    Raises:
        UserError: no such run, a student's, or numbers that are too small.
    """
    from sfumato.engine.machine import device_of
    from sfumato.engine.tune import tune

    return tune(Path(run), calls, paths, rounds, seed, device_of(device)[0])
