"""Goal: validation of text, all sentences scored, runs at least 4 times as fast as batched `generate` of full prompts.

    python benchmarks/text_validation.py                  # a language model of TinyLlama's size, fp32: 4.4 GB
    python benchmarks/text_validation.py --layers 2       # a look

The rival hands each batch of full prompts (chat, EEG tokens, chat) to transformers' `generate`, and then each of them
with each of the dataset's sentences to the model. Ours reads the text before the EEG once, keeps keys and values, and
scores all sentences behind them. Both must say the same. Random weights; texts are as long as the longest sentence.
"""

import sys
import tempfile
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common
from datasets.description import load_description
from models.eeg_llm import EEGLanguageModel, EEGProjection
from models.tiny_llm import write_language_model

TINYLLAMA = dict(vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_attention_heads=32,
                 num_key_value_heads=4, bos_token_id=1, eos_token_id=2)  # fmt: skip


def full_prompts(model: EEGLanguageModel, x: torch.Tensor, sentences: list[str], longest: int) -> tuple:
    """Texts, and (B, K) mean log-probabilities of the sentences."""
    llm, tokenizer = model.language_model, model.tokenizer
    embed = llm.get_input_embeddings()
    before, after = (embed(ids).expand(len(x), -1, -1) for ids in (model.before_ids, model.after_ids))
    prompts = torch.cat([before, model.projection(x), after], dim=1)  # (B, L, H)
    mask = torch.ones(prompts.shape[:2], dtype=torch.long)
    said = llm.generate(
        inputs_embeds=prompts, attention_mask=mask, do_sample=False, max_new_tokens=longest,
        pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    scores = []
    for sentence in sentences:
        ids = [*tokenizer(sentence, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        ids = torch.tensor([ids]).expand(len(x), -1)  # (B, T)
        logits = llm(inputs_embeds=torch.cat([prompts, embed(ids[:, :-1])], dim=1)).logits[:, prompts.shape[1] - 1 :]
        scores.append(-F.cross_entropy(logits.mT, ids, reduction="none").mean(dim=1))
    texts = [text.strip() for text in tokenizer.batch_decode(said, skip_special_tokens=True)]
    return texts, torch.stack(scores, dim=1) if scores else torch.empty(len(x), 0)


@torch.no_grad()
def main() -> None:
    parser = common.new_parser(__doc__)
    parser.add_argument("--dataset", default="VI", help="whose prompts and sentences")
    parser.add_argument("--trials", type=int, default=4, help="a batch")
    parser.add_argument("--tokens", type=int, default=5, help="EEG tokens a trial")
    parser.add_argument("--layers", type=int, default=22, help="of the language model; TinyLlama has 22")
    args = parser.parse_args()
    print(common.machine())
    description = load_description(args.dataset)
    with torch.enable_grad(), tempfile.TemporaryDirectory() as folder:  # for its tokenizer
        phrasings = [text for texts in description.phrasings.values() for text in texts]
        chat = (description.system_prompt, description.user_prompt, ["hint"], phrasings)
        write_language_model(Path(folder) / "tiny", [chat], steps=1)
        tokenizer = AutoTokenizer.from_pretrained(Path(folder) / "tiny")
    torch.manual_seed(0)
    llm = LlamaForCausalLM(LlamaConfig(**TINYLLAMA, num_hidden_layers=args.layers))
    prompts = description.system_prompt, description.user_prompt
    model = EEGLanguageModel(llm, tokenizer, *prompts, EEGProjection(TINYLLAMA["hidden_size"])).eval()
    sentences, x = list(description.canonical), torch.randn(args.trials, args.tokens, 200)
    longest = max(len(tokenizer(text, add_special_tokens=False).input_ids) for text in sentences) + 1

    def ours() -> tuple:
        model.read_prefix()
        return model.decode(x, sentences, longest)

    (texts, scores), (wanted, all_scores) = ours(), full_prompts(model, x, sentences, longest)
    assert texts == wanted and torch.allclose(scores, all_scores, atol=1e-3), "the two do not agree"
    sides = {"ours": ours, "full prompts": lambda: full_prompts(model, x, sentences, longest)}
    sides["its generate alone"] = lambda: full_prompts(model, x, [], longest)
    seconds = common.in_turns(sides, args.rounds)
    n_prompt = model.before_ids.shape[1] + args.tokens + model.after_ids.shape[1]
    print(
        f"{args.dataset}: {args.trials} trials, prompts of {n_prompt} tokens, {len(sentences)} sentences, "
        f"{longest} new tokens, {sum(p.numel() for p in llm.parameters()):,} parameters"
    )
    for name, of in seconds.items():
        print(f"  {name}: {common.spread([s / args.trials for s in of])} s a trial")
    print(f"  full prompts / ours {common.ratio(seconds['full prompts'], seconds['ours'])} (goal: ≥ 4)")


if __name__ == "__main__":
    main()
