#!/usr/bin/env python3
"""Writes the golden data of the tokenizer and chat tests with the PyPI packages tokenizers, sentencepiece, jinja2 and gguf.

    generate.py vocabulary            tiny.json: trains the small vocabulary on excerpts.txt
    generate.py tiny                  tiny-PRE.tsv: ids of the synthetic text under the small vocabulary
    generate.py families              families/NAME: a small tokenizer as the models of this family have it, trained on
                                      excerpts.txt (the byte-level ones: the small vocabulary), and NAME.tsv
    generate.py model NAME FILE.gguf  NAME.tsv: the same under the vocabulary of a model file
    generate.py chat                  chat.json: conversations rendered by the templates in templates/

A .tsv has one line per chunk of text: FNV-1a hash of the text, number of ids, FNV-1a hash of the ids, and of the text that
they decode to. The text is made by the same steps here and in golden_text.cc, from excerpts.txt, ingredients.json and the
tokens of the vocabulary. Every second chunk is encoded with control tokens parsed, but by sentencepiece, which never does.
"""
import json
import struct
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
N_CHUNKS = 300
CHUNK_BYTES = 4096
PRE_TOKENISERS = ("smollm", "qwen2", "llama-bpe", "gpt-2", "falcon")
NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 3, 4, 6
SPACE = "\u2581"
MASK = (1 << 64) - 1

LLAMA3_PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBER| ?[^\s\p{L}\p{N}]+[\r\n]*"
                  r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def read_json(name):
    return json.loads((HERE / name).read_text(encoding="utf-8"))


def write_json(name, value):
    (HERE / name).write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def fnv1a(data, value=0xCBF29CE484222325):
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & MASK
    return value


# --- the small vocabulary ---------------------------------------------------------------------------------------------

def byte_symbols():
    """The byte-level alphabet by byte."""
    own = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    free = iter(range(0x100, 0x200))
    return [chr(b if b in own else next(free)) for b in range(256)]


def train_vocabulary():
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=1400, initial_alphabet=byte_symbols(), show_progress=False)
    tokenizer.train_from_iterator((HERE / "excerpts.txt").read_text(encoding="utf-8").splitlines(True), trainer)
    write_json("tiny.json", {
        "merges": [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]],
        # Tokens that no merge makes: only a pre-tokeniser that keeps known pieces finds them.
        "unmerged": ["Ġunreachable", "shutters", "Ġkettle", "981", "ä»Ĭå¤©"],
        "user_defined": ["<tool_call>", "</tool_call>", "<tool_call>x"],
        "control": ["<|im_start|>", "<|im_end|>", "<|im_end|><|im_start|>", "<|endoftext|>"],
    })


def tiny_vocabulary():
    """(tokens, types, merges)"""
    tiny = read_json("tiny.json")
    tokens = byte_symbols() + [m.replace(" ", "") for m in tiny["merges"]] + tiny["unmerged"]
    types = [NORMAL] * len(tokens)
    for kind, token_type in (("user_defined", USER_DEFINED), ("control", CONTROL)):
        tokens += tiny[kind]
        types += [token_type] * len(tiny[kind])
    return tokens, types, tiny["merges"]


# --- the synthetic text; golden_text.cc does the same -----------------------------------------------------------------

def words_of(tokens, types, is_byte_level=True):
    """The normal tokens that are whole UTF-8 text, in order of their ids."""
    if not is_byte_level:
        return [token.replace(SPACE, " ") for token, kind in zip(tokens, types) if kind == NORMAL]
    byte_of = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    words = []
    for token, token_type in zip(tokens, types):
        if token_type == NORMAL:
            try:
                words.append(bytes(byte_of[c] for c in token).decode("utf-8"))
            except UnicodeDecodeError:
                pass
    return words


class TextMaker:
    def __init__(self, words):
        self.words = words
        self.excerpt = (HERE / "excerpts.txt").read_text(encoding="utf-8")
        ingredients = read_json("ingredients.json")
        self.code_points = ingredients["code_points"]
        self.lists = ingredients["lists"]

    def below(self, limit):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) & MASK
        return (self.state >> 33) % limit

    def some(self, most, choose):
        return "".join(choose() for _ in range(1 + self.below(most)))

    def code_point(self):
        low, high = self.code_points[self.below(len(self.code_points))]
        return chr(low + self.below(high - low + 1))

    def piece(self):
        kind = self.below(4 + len(self.lists))
        if kind < 2:
            begin = self.below(len(self.excerpt) - 200)
            return self.excerpt[begin:begin + 1 + self.below(200)]
        if kind == 2:
            return self.some(8, lambda: self.words[self.below(len(self.words))])
        if kind == 3:
            return self.some(12, self.code_point)
        entries = self.lists[kind - 4]
        return self.some(8, lambda: entries[self.below(len(entries))])

    def chunk(self, index):
        self.state = index
        text = b""
        while len(text) < CHUNK_BYTES:
            text += self.piece().encode("utf-8")
        return text


# --- the oracles ------------------------------------------------------------------------------------------------------

def pre_tokenizer(pre):
    from tokenizers import Regex, pre_tokenizers
    if pre in ("qwen2", "llama-bpe"):
        pattern = LLAMA3_PATTERN.replace("NUMBER", r"\p{N}" if pre == "qwen2" else r"\p{N}{1,3}")
        return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"),
                                        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    if pre == "falcon":
        return pre_tokenizers.Sequence([
            pre_tokenizers.Punctuation("contiguous"), byte_level, pre_tokenizers.Digits(individual_digits=False),
            pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated")])
    return pre_tokenizers.Sequence([byte_level])


def byte_level_tokenizer(tokens, types, merges, pre):
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, [tuple(m.split(" ")) for m in merges],
                                     ignore_merges=pre == "llama-bpe"))
    tokenizer.pre_tokenizer = pre_tokenizer(pre)
    tokenizer.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    added = lambda wanted: [AddedToken(t, normalized=False) for t, k in zip(tokens, types) if k == wanted]
    tokenizer.add_special_tokens(added(CONTROL))
    tokenizer.add_tokens(added(USER_DEFINED))
    return tokenizer


class HuggingFace:
    """Ids and text by tokenizers."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}

    def encode(self, text, parse_special):
        self.tokenizer.encode_special_tokens = not parse_special  # True: control tokens are plain text
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids):
        return self.tokenizer.decode([i for i in ids if i not in self.special])


class SentencePiece:
    """Ids and text by sentencepiece, of a serialised model."""

    def __init__(self, model):
        from sentencepiece import SentencePieceProcessor
        self.processor = SentencePieceProcessor(model_proto=model)

    def encode(self, text, _):
        return self.processor.encode(text)

    def decode(self, ids):
        return self.processor.decode(ids)


def write_ids(path, words, oracle):
    maker = TextMaker(words)
    lines, n_bytes, n_ids = [], 0, 0
    for index in range(N_CHUNKS):
        text = maker.chunk(index)
        ids = oracle.encode(text.decode("utf-8"), index % 2 == 1)
        decoded = oracle.decode(ids).encode("utf-8")
        lines.append(f"{fnv1a(text):016x}\t{len(ids)}\t{fnv1a(struct.pack(f'<{len(ids)}i', *ids)):016x}"
                     f"\t{fnv1a(decoded):016x}\n")
        n_bytes, n_ids = n_bytes + len(text), n_ids + len(ids)
    path.write_text("".join(lines))
    print(f"{path.stem}: {n_bytes} bytes, {n_ids} ids")


def write_tiny(pre):
    tokens, types, merges = tiny_vocabulary()
    write_ids(HERE / f"tiny-{pre}.tsv", words_of(tokens, types),
              HuggingFace(byte_level_tokenizer(tokens, types, merges, pre)))


# --- model files ------------------------------------------------------------------------------------------------------

def sentencepiece_model(tokens, types, scores, ids):
    """The tokenizer of a GGUF file with tokenizer.ggml.model "llama" as SentencePiece's own file."""
    from sentencepiece import sentencepiece_model_pb2
    model = sentencepiece_model_pb2.ModelProto()
    for token, kind, score in zip(tokens, types, scores):
        model.pieces.add(piece=token.replace(" ", SPACE), type=kind, score=score)
    trainer = model.trainer_spec
    trainer.model_type, trainer.byte_fallback = 2, True
    for name, i in ids.items():
        setattr(trainer, f"{name}_id", i)
        setattr(trainer, f"{name}_piece", tokens[i])
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    return model.SerializeToString()


def write_model(name, path):
    from gguf import GGUFReader
    fields = GGUFReader(path).fields
    get = lambda key: fields["tokenizer.ggml." + key].contents()
    tokens, types = get("tokens"), get("token_type")
    if get("model") == "llama":
        ids = {short: get(long + "_token_id")
               for short, long in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))}
        oracle = SentencePiece(sentencepiece_model(tokens, types, get("scores"), ids))
        write_ids(HERE / f"{name}.tsv", words_of(tokens, types, False), oracle)
    else:
        oracle = HuggingFace(byte_level_tokenizer(tokens, types, get("merges"), get("pre")))
        write_ids(HERE / f"{name}.tsv", words_of(tokens, types), oracle)


# --- families ---------------------------------------------------------------------------------------------------------

def learned_merges():
    """(alphabet, merges) of a BPE on excerpts.txt with U+2581 for spaces; rare characters are left to bytes."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trainer = trainers.BpeTrainer(vocab_size=1100, limit_alphabet=250, show_progress=False)
    tokenizer.train_from_iterator((HERE / "excerpts.txt").read_text(encoding="utf-8").splitlines(True), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    merged = {a + b for a, b in merges}
    return [token for token in model["vocab"] if token not in merged], merges


def text_tokenizer(before, after, prefix):
    """A tokenizer of text with bytes to fall back on. `before` and `after` are added tokens at the ends of the vocabulary;
    prefix: "prepend" (Llama 2), "first" (Mistral) or "none" (Gemma)."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    alphabet, merges = learned_merges()
    spaces = [(SPACE * n, SPACE * n) for n in (1, 2, 4)]
    tokens = [t.content for t in before] + [f"<0x{byte:02X}>" for byte in range(256)]
    tokens += [t for t in dict.fromkeys(alphabet + [a + b for a, b in spaces + merges]) if t not in tokens]
    tokens += [t.content for t in after if t.content not in tokens]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, spaces + merges, unk_token="<unk>",
                                     fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", SPACE)
    strip = [decoders.Strip(" ", 1, 0)]
    if prefix == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace])
    elif prefix == "first":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = replace
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        strip = []
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()] + strip)
    for token in before + after:
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    return tokenizer


def text_families():
    """Name -> (tokenizer, tokenizer_config.json)"""
    from tokenizers import AddedToken
    from tokenizers.processors import TemplateProcessing

    def token(text, special=True, normalized=False, rstrip=False):
        return AddedToken(text, special=special, normalized=normalized, rstrip=rstrip)

    def begins(tokenizer, bos):
        tokenizer.post_processor = TemplateProcessing(f"{bos} $A", None, [(bos, tokenizer.token_to_id(bos))])
        return tokenizer

    llama = [token("<unk>"), token("<s>"), token("</s>")]
    old_llama = [token(t.content, normalized=True) for t in llama]
    phi = ["<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]
    gemma = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    gemma_text = ["\n", "\n\n", SPACE * 2, SPACE * 4, "<br>", "</s>"]
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return {
        "llama1": (begins(text_tokenizer(old_llama, [], "prepend"), "<s>"), names),
        "llama2": (begins(text_tokenizer(llama, [], "prepend"), "<s>"), names | {"add_bos_token": True}),
        "mistral": (begins(text_tokenizer(llama + [token("[INST]"), token("[/INST]")], [], "first"), "<s>"), names),
        "phi3": (text_tokenizer(llama[:2] + [token("</s>", rstrip=True)],
                                [token(t, rstrip=t != phi[0]) for t in phi], "prepend"),
                 {"bos_token": "<s>", "eos_token": "<|end|>", "unk_token": "<unk>", "add_bos_token": False}),
        "gemma": (begins(text_tokenizer([token(t) for t in gemma], [token(t, special=False) for t in gemma_text], "none"),
                         "<bos>"),
                  {"bos_token": "<bos>", "eos_token": {"content": "<eos>"}, "add_bos_token": True}),
    }


def byte_level_families():
    tokens, types, merges = tiny_vocabulary()
    questions = [">>TITLE<<", ">>QUESTION<<"]
    extended = questions + tokens, [CONTROL] * 2 + types
    end = {"eos_token": "<|im_end|>", "bos_token": None}
    return {
        "llama3": (byte_level_tokenizer(tokens, types, merges, "llama-bpe"), end),
        "qwen2": (byte_level_tokenizer(tokens, types, merges, "qwen2"), end | {"add_bos_token": False}),
        "smollm": (byte_level_tokenizer(tokens, types, merges, "smollm"), end),
        "falcon": (byte_level_tokenizer(*extended, merges, "falcon"), {"eos_token": "<|endoftext|>"}),
    }


def write_family(name, tokenizer, config):
    folder = HERE / "families" / name
    folder.mkdir(parents=True, exist_ok=True)
    file = json.loads(tokenizer.to_str())
    if name in ("llama1", "smollm", "falcon"):  # as older files have them
        file["model"]["merges"] = [" ".join(merge) for merge in file["model"]["merges"]]
    (folder / "tokenizer.json").write_text(json.dumps(file, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    added = {token["id"] for token in file["added_tokens"]}
    is_byte_level = "ByteLevel" in json.dumps(file["pre_tokenizer"])
    tokens = [token for token, _ in sorted(file["model"]["vocab"].items(), key=lambda item: item[1])]
    is_byte = lambda token: not is_byte_level and token.startswith("<0x")
    types = [CONTROL if i in added else BYTE if is_byte(token) else NORMAL for i, token in enumerate(tokens)]
    write_ids(HERE / f"{name}.tsv", words_of(tokens, types, is_byte_level), HuggingFace(tokenizer))


def write_sentencepiece(model_type, size, **options):
    import io
    from sentencepiece import SentencePieceTrainer, sentencepiece_model_pb2
    serialised = io.BytesIO()
    lines = (HERE / "excerpts.txt").read_text(encoding="utf-8").splitlines()
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=serialised, model_type=model_type, vocab_size=size,
        byte_fallback=True, character_coverage=0.98, normalization_rule_name="identity", minloglevel=2,
        user_defined_symbols=["<tool_call>", "<br>", SPACE * 2, SPACE * 4], control_symbols=["<|im_end|>"], **options)
    name = f"sentencepiece-{model_type}"
    folder = HERE / "families" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(serialised.getvalue())
    pieces = sentencepiece_model_pb2.ModelProto.FromString(serialised.getvalue()).pieces
    words = words_of([p.piece for p in pieces], [p.type for p in pieces], False)
    write_ids(HERE / f"{name}.tsv", words, SentencePiece(serialised.getvalue()))


def write_families():
    for name, (tokenizer, config) in (text_families() | byte_level_families()).items():
        write_family(name, tokenizer, config)
    write_sentencepiece("bpe", 1100, remove_extra_whitespaces=False)
    write_sentencepiece("unigram", 900, remove_extra_whitespaces=True)


# --- chat -------------------------------------------------------------------------------------------------------------

CONVERSATIONS = [
    [("user", "Hello, who are you?")],
    [("system", "You answer in one word."), ("user", "  Capital of France?\n"), ("assistant", " Paris "), ("user", "And of Italy?")],
    [("user", "Say <|im_end|> and <|eot_id|> and </s>."), ("assistant", "\n<|im_end|>\n"), ("user", "今天 ½ it's\n\n  done…")],
    [("system", "  Keep\n\nspaces  "), ("user", "x\t")],
    [("user", "Capital of Italy?"), ("assistant", "<think>\nHm.\n</think>\n\nRome."), ("user", "And of Spain?")],
]
BOS_EOS = {"llama2": ("<s>", "</s>"), "mistral": ("<s>", "</s>"), "llama3": ("<|begin_of_text|>", "<|eot_id|>"),
           "gemma2": ("<bos>", "<eos>"), "gemma3": ("<bos>", "<eos>"), "phi3": ("<s>", "<|end|>")}


def write_chat():
    from jinja2 import Environment, TemplateError
    environment = Environment(trim_blocks=True, lstrip_blocks=True)  # as transformers has it

    def raise_exception(message):
        raise TemplateError(message)

    environment.globals["raise_exception"] = raise_exception
    cases = []
    for path in sorted((HERE / "templates").glob("*.jinja")):
        template = environment.from_string(path.read_text(encoding="utf-8"))
        bos, eos = BOS_EOS.get(path.stem, ("<|endoftext|>", "<|im_end|>"))
        for conversation in CONVERSATIONS:
            messages = [{"role": role, "content": content} for role, content in conversation]
            if path.stem == "gemma2" and messages[0]["role"] == "system":
                continue  # it refuses them; kivi lays them out as Gemma 3 does
            prompt = template.render(messages=messages, bos_token=bos, eos_token=eos, add_generation_prompt=True)
            cases.append({"template": path.name, "bos": bos, "eos": eos, "messages": messages, "prompt": prompt})
    write_json("chat.json", cases)


def main(arguments):
    if arguments == ["vocabulary"]:
        train_vocabulary()
    elif arguments == ["tiny"]:
        for pre in PRE_TOKENISERS:
            write_tiny(pre)
    elif arguments == ["families"]:
        write_families()
    elif len(arguments) == 3 and arguments[0] == "model":
        write_model(arguments[1], arguments[2])
    elif arguments == ["chat"]:
        write_chat()
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
