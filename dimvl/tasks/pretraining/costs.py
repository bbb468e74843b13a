"""The cost of an average example of pretraining, for `dimvl plan`."""

from dataclasses import replace

from dimvl.model.work import Work
from dimvl.tasks.captioning.config import Seq2seqConfig
from dimvl.tasks.captioning.task import average_captions
from dimvl.tasks.costs import AverageExample, DataFacts, planned_work
from dimvl.tasks.pretraining.config import ContrastiveConfig, ObjectivesConfig
from dimvl.tasks.pretraining.groups import check_group


def average_of_objectives(objectives: ObjectivesConfig, seq2seq: Seq2seqConfig, facts: DataFacts) -> AverageExample:
    """Return the cost of an average example over the objectives, by their shares.

    Raises:
        UserError: there are fewer images than a contrastive group needs, where their number is known.

    """
    if objectives.shares.contrastive and facts.images is not None and facts.images_per_prefix == 1:
        check_group(objectives.contrastive, facts.images)
    texts = facts.texts
    shares = objectives.shares_of_examples()
    words, regions = float(max(1, round(objectives.text_share * texts.words))), 0.0
    if facts.regions:
        regions = float(max(1, round(objectives.region_share * facts.regions)))
    else:  # without regions, the masked language model takes the place of masked object prediction
        shares |= {"masked_lm": shares["masked_lm"] + shares["masked_object"], "masked_object": 0.0}
    number = texts.drawn if objectives.shared_prefix else 1.0
    longest, longest_of_image = texts.longest - texts.words, texts.longest_of_image - texts.words
    masked = planned_work(facts, word_head=words)
    hidden = planned_work(facts, object_head=regions)
    matching = planned_work(facts, number, objectives.shared_prefix, match_head=number)
    kinds = {
        "masked_lm": AverageExample(work=masked, cost=masked.rows + longest_of_image),
        "masked_object": AverageExample(work=hidden, cost=hidden.rows + longest_of_image),
        "seq2seq_lm": average_captions(seq2seq, facts),
        # another image's text may be the longest
        "matching": AverageExample(work=matching, cost=matching.rows + number * longest),
        "contrastive": average_group(objectives.contrastive, facts),
    }
    total, work, cost, prefixes = sum(shares.values()), Work(), 0.0, 0.0
    for name, share in shares.items():
        if share:
            work += kinds[name].work * (share / total)
            cost += kinds[name].cost * (share / total)
            prefixes += kinds[name].prefixes * (share / total)
    return AverageExample(work=work, cost=cost, prefixes=prefixes)


def average_group(config: ContrastiveConfig, facts: DataFacts) -> AverageExample:
    """Return the cost of a group of average images."""
    images, texts = config.group, facts.texts.drawn
    regions, words = facts.regions, texts * facts.texts.words
    parts = {"align_head.image": 1.0, "align_head.region": regions, "align_head.text": texts, "align_head.word": words}
    one = replace(planned_work(facts, texts, apart=True), heads={"align_head": sum(parts.values()), **parts})
    similarities = images**2 * (texts + regions * words)
    cost = one.rows + facts.texts.drawn_rows - texts * (facts.texts.words + 1)
    work = replace(one * images, similarities=similarities)
    return AverageExample(work=work, cost=images * cost, prefixes=images)
