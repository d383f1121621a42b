"""Small models of transformers with random weights, and a tokenizer."""

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

WORDS = ("a model is saved once and read many times each tensor of it has a name a type and a shape "
         "what was written comes back byte for byte").split()


def tokenizer():
    """A word tokenizer, trained here; the same at every call."""
    made = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.train_from_iterator([WORDS], trainers.WordLevelTrainer(special_tokens=["[UNK]", "[PAD]"]))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]")


def llama(*, hidden=128, layers=4, vocabulary=4000, tied=False):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        hidden_size=hidden, intermediate_size=hidden * 11 // 4, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, vocab_size=vocabulary, tie_word_embeddings=tied))


def gpt2():
    """Its output layer is tied to its embedding."""
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(
        n_embd=128, n_layer=4, n_head=4, vocab_size=4000, n_positions=256))


def bert():
    return transformers.BertForMaskedLM(transformers.BertConfig(
        hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=512,
        vocab_size=4000))


KINDS = {
    "llama": llama,
    "llama-tied": lambda: llama(tied=True),
    "gpt2": gpt2,
    "bert": bert,
}


def make(kind, dtype, seed=0):
    torch.manual_seed(seed)
    return KINDS[kind]().to(dtype).eval()


def largest_shard(model, count):
    """A max_shard_size, in bytes, that cuts the model into at least `count` shards."""
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    return total // count


def assert_equal(left, right):
    """Two models have the same tensors, bit by bit, under the same names and of the same types."""
    ours, theirs = left.state_dict(), right.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name
