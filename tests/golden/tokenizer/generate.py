#!/usr/bin/env python3
"""Writes the golden data of the tokenizer and chat tests with the PyPI packages tokenizers, jinja2 and gguf.

    generate.py vocabulary            tiny.json: trains the small vocabulary on excerpts.txt
    generate.py tiny                  tiny-PRE.tsv: ids of the synthetic text under the small vocabulary
    generate.py model NAME FILE.gguf  NAME.tsv: the same under the vocabulary of a model file
    generate.py chat                  chat.json: conversations rendered by the templates in templates/

A .tsv has one line per chunk of text: FNV-1a hash of the text, number of ids, FNV-1a hash of the ids. The text is made by
the same steps here and in golden_text.cc, from excerpts.txt, ingredients.json and the tokens of the vocabulary. Every
second chunk is encoded with control tokens parsed.
"""
import json
import struct
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
N_CHUNKS = 300
CHUNK_BYTES = 4096
PRE_TOKENISERS = ("smollm", "qwen2", "llama-bpe", "gpt-2")
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
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


def model_vocabulary(path):
    from gguf import GGUFReader
    fields = GGUFReader(path).fields
    tokens, types, merges, pre = (fields["tokenizer.ggml." + key].contents()
                                  for key in ("tokens", "token_type", "merges", "pre"))
    return tokens, types, merges, pre


# --- the synthetic text; golden_text.cc does the same -----------------------------------------------------------------

def words_of(tokens, types):
    """The normal tokens that are whole UTF-8 text, in order of their ids."""
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

def hugging_face_tokenizer(tokens, types, merges, pre):
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, [tuple(m.split(" ")) for m in merges],
                                     ignore_merges=pre == "llama-bpe"))
    if pre in ("qwen2", "llama-bpe"):
        pattern = LLAMA3_PATTERN.replace("NUMBER", r"\p{N}" if pre == "qwen2" else r"\p{N}{1,3}")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    else:
        digits = [pre_tokenizers.Digits(individual_digits=True)] if pre == "smollm" else []
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(digits + [pre_tokenizers.ByteLevel(add_prefix_space=False)])
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    added = lambda wanted: [AddedToken(t, normalized=False) for t, k in zip(tokens, types) if k == wanted]
    tokenizer.add_special_tokens(added(CONTROL))
    tokenizer.add_tokens(added(USER_DEFINED))
    return tokenizer


def write_tokens(name, tokens, types, merges, pre):
    tokenizer = hugging_face_tokenizer(tokens, types, merges, pre)
    maker = TextMaker(words_of(tokens, types))
    lines, n_bytes, n_ids = [], 0, 0
    for index in range(N_CHUNKS):
        text = maker.chunk(index)
        tokenizer.encode_special_tokens = index % 2 == 0  # True: control tokens are plain text
        ids = tokenizer.encode(text.decode("utf-8"), add_special_tokens=False).ids
        lines.append(f"{fnv1a(text):016x}\t{len(ids)}\t{fnv1a(struct.pack(f'<{len(ids)}i', *ids)):016x}\n")
        n_bytes, n_ids = n_bytes + len(text), n_ids + len(ids)
    (HERE / f"{name}.tsv").write_text("".join(lines))
    print(f"{name}: {n_bytes} bytes, {n_ids} ids")


CONVERSATIONS = [
    [("user", "Hello, who are you?")],
    [("system", "You answer in one word."), ("user", "  Capital of France?\n"), ("assistant", " Paris "), ("user", "And of Italy?")],
    [("user", "Say <|im_end|> and <|eot_id|> and </s>."), ("assistant", "\n<|im_end|>\n"), ("user", "今天 ½ it's\n\n  done…")],
    [("system", "  Keep\n\nspaces  "), ("user", "x\t")],
]
BOS_EOS = {"llama2": ("<s>", "</s>"), "mistral": ("<s>", "</s>"), "llama3": ("<|begin_of_text|>", "<|eot_id|>")}


def write_chat():
    from jinja2 import Environment
    cases = []
    for path in sorted((HERE / "templates").glob("*.jinja")):
        template = Environment().from_string(path.read_text(encoding="utf-8"))
        bos, eos = BOS_EOS.get(path.stem, ("<|endoftext|>", "<|im_end|>"))
        for conversation in CONVERSATIONS:
            messages = [{"role": role, "content": content} for role, content in conversation]
            prompt = template.render(messages=messages, bos_token=bos, eos_token=eos, add_generation_prompt=True)
            cases.append({"template": path.name, "bos": bos, "eos": eos, "messages": messages, "prompt": prompt})
    write_json("chat.json", cases)


def main(arguments):
    if arguments == ["vocabulary"]:
        train_vocabulary()
    elif arguments == ["tiny"]:
        for pre in PRE_TOKENISERS:
            write_tokens("tiny-" + pre, *tiny_vocabulary(), pre)
    elif len(arguments) == 3 and arguments[0] == "model":
        write_tokens(arguments[1], *model_vocabulary(arguments[2]))
    elif arguments == ["chat"]:
        write_chat()
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
