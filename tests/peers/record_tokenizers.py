"""Record the token ids of SentencePiece itself: python -m tests.peers.record_tokenizers

Needs the extra "peers" (sentencepiece). Writes tests/peers/tokenizers/: small models of both kinds, and texts.json,
texts with the ids that the package gives. The ordinary suite reads these files without the package.
"""

import io
import json
import shutil
from contextlib import chdir
from pathlib import Path

import sentencepiece

from gla_jax.text.prompts import imagenet_templates

HERE = Path(__file__).parent / "tokenizers"
CLASSES = Path(__file__).parents[2] / "eval" / "class_names"
# Ligatures and wide letters, as the rules of most models take them, and a space that is none of ASCII's.
RULES = (("ﬁ", "fi"), ("ﬂ", "fl"), ("\u00a0", " "), ("½", "1/2"), ("２", "2"))
ODD = (
    *("", " ", "a", "  two   spaces ", "tab\tand line\nend", "traffic-light", "it's", "no.1, or (2)?", "x" * 7),
    *(
        "ﬁsh and ﬂag",
        "½ cup of ２\u00a0eggs",
        "ﬁ ﬁﬁ",
        "café crème",
        "naïve ß",
        "猫と草",
        "кот",
        "🙂 face",
        "e\u0301",
        "\ufeffx",
    ),
    *("a▁b", "sky sky", "sk y"),
)
KINDS = {
    # As Tipsv2Tokenizer of transformers describes the release's: pairs, spelled by bytes where a letter is unknown.
    "bpe": {"model_type": "bpe", "vocab_size": 600, "byte_fallback": True, "unk_id": 1, "eos_id": -1},
    "bpe_unknown": {"model_type": "bpe", "vocab_size": 300, "unk_id": 1, "eos_id": -1},
    "unigram": {"model_type": "unigram", "vocab_size": 340, "unk_id": 2, "eos_id": 1},
    "unigram_bytes": {"model_type": "unigram", "vocab_size": 560, "byte_fallback": True, "unk_id": 2, "eos_id": 1},
    "symbols": {"model_type": "bpe", "vocab_size": 320, "unk_id": 1, "eos_id": -1, "user_defined_symbols": ["<extra>"]},
}


def texts() -> list[str]:
    """Prompts of the benchmarks' classes in CLIP's templates, and odd ones."""
    names: list[str] = []
    for path in sorted(CLASSES.glob("*.json")):
        names += json.loads(path.read_text())["classes"]
    templates = imagenet_templates()
    names = sorted(set(names))
    prompts = [templates[index % len(templates)].replace("{}", name) for index, name in enumerate(names)]
    return [*ODD, *(text.lower() for text in prompts)]


def main() -> None:
    """Train, record and write."""
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir()
    rules = HERE / "rules.tsv"
    written = [
        " ".join(f"{ord(x):x}" for x in source) + "\t" + " ".join(f"{ord(x):x}" for x in target)
        for source, target in RULES
    ]
    rules.write_text("\n".join(written) + "\n")
    corpus, ids = texts(), {}
    for name, kind in KINDS.items():
        model = io.BytesIO()
        with chdir(HERE):  # a model holds the path of its rules as it was given
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter([text for text in corpus if text.isascii()]),
                model_writer=model,
                normalization_rule_tsv=rules.name,
                pad_id=0,
                bos_id=-1,
                num_threads=1,
                minloglevel=2,
                **kind,
            )
        (HERE / f"{name}.model").write_bytes(model.getvalue())
        processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
        ids[name] = [processor.encode(text) for text in corpus]
    rules.unlink()
    (HERE / "texts.json").write_text(json.dumps({"texts": corpus, "ids": ids}) + "\n")


if __name__ == "__main__":
    main()
