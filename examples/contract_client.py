"""One episode against the two services, in the shape of the original rollout loop; imports nothing of this project.

    bash scripts/recall.sh &
    bash scripts/reward.sh 5002 rec &
    python examples/contract_client.py --idx 42

The loop: let the policy write until it closes a preference, post the preference to /recall, append the item list that
comes back, go on; when it has closed its recommendation list, post the whole text to /reward. The policy here is a
stand-in that wishes for three kinds of items and ranks what it has read; put a language model in its place.
"""

from __future__ import annotations

import argparse

import requests

PREFERENCE_BEGIN, PREFERENCE_END = "<|begin_of_preference|>", "<|end_of_preference|>"
ITEM_LIST_BEGIN, ITEM_LIST_END = "<|begin_of_item_list|>", "<|end_of_item_list|>"
LIST_BEGIN, LIST_END = "<recommendation_list>", "</recommendation_list>"
PROMPT = "User:\nRecommend what this person wants next.\n\nAssistant:\n<think>\n"
REWARD_NAMES = ("outcome", "format", "similarity", "invocation", "diversity")

WISHES = ("light comedies with heart", "tense crime stories", "great adventures in far places")


def write_turn(text: str) -> str:
    """Return what the policy writes next, up to a closing tag, as an engine with these two stop strings would."""
    num_searches = text.count(ITEM_LIST_END)
    if num_searches < len(WISHES):
        return f"Perhaps {WISHES[num_searches]}.\n{PREFERENCE_BEGIN} {WISHES[num_searches]} {PREFERENCE_END}"
    titles = []
    for block in text.split(ITEM_LIST_BEGIN)[1:]:
        lines = block.split(ITEM_LIST_END)[0].splitlines()
        titles.append([line.split(". ", 1)[1] for line in lines if line[:1].isdigit()])
    in_turn = dict.fromkeys(title for places in zip(*titles) for title in places)
    ranked = "\n".join(f"{place}. {title}" for place, title in enumerate(list(in_turn)[:10], start=1))
    return f"The best of each list comes first.\n</think>\n{LIST_BEGIN}\n{ranked}\n{LIST_END}"


def post(url: str, body: dict[str, object]) -> dict[str, list]:
    """Return the JSON answer of a service."""
    try:
        answer = requests.post(url, json=body, timeout=30)
    except requests.ConnectionError:
        raise SystemExit(f"nobody answers at {url}; is the server running?") from None
    if not answer.ok:
        raise SystemExit(f"{url} refused: {answer.json()['detail']}")
    return answer.json()


def main() -> None:
    """Play the episode and print it with its reward."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recall", default="http://127.0.0.1:6001", help="the retrieval server")
    parser.add_argument("--reward", default="http://127.0.0.1:5002", help="the reward server")
    parser.add_argument("--idx", type=int, default=1, help="the user")
    parser.add_argument("--k", type=int, default=20, help="items for each preference")
    options = parser.parse_args()

    text, num_recalls = PROMPT, 0
    while True:
        text += write_turn(text)
        if not text.endswith(PREFERENCE_END):
            break
        preference = text.rpartition(PREFERENCE_BEGIN)[2].removesuffix(PREFERENCE_END).strip()
        request = {
            "idx_list": [options.idx],
            "preference_list": [preference],
            "current_step": 0,
            "recall_num_list": [num_recalls],
            "k": options.k,
        }
        items = post(f"{options.recall}/recall", request)["item_list"][0]
        num_recalls += 1
        listed = "".join(f"{place}. {item}\n" for place, item in enumerate(items, start=1))
        text += f"\n\n{ITEM_LIST_BEGIN}\n{listed}{ITEM_LIST_END}\n\n"

    request = {"query_list": [text], "idx_list": [options.idx], "current_step": 0, "recall_num_list": [num_recalls]}
    rewards = post(f"{options.reward}/reward", request)["rewards"][0]
    print(text)
    print("\n" + ", ".join(f"{name} {value:.3f}" for name, value in zip(REWARD_NAMES, rewards)))


if __name__ == "__main__":
    main()
