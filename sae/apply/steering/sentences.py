"""Sentences about a few concepts that differ in their words alone: for trying directions without a data set."""

from __future__ import annotations

from sae.text.brought import ClassedTexts

WORDS = {
    "music": "guitar piano violin song melody orchestra concert drum singer choir opera album",
    "food": "bread soup cheese apple butter dinner kitchen recipe rice chicken sugar breakfast",
    "weather": "rain storm cloud snow wind thunder fog frost sunshine temperature breeze hail",
    "money": "bank loan price dollar salary tax budget debt profit cash investment interest",
    "illness": "fever doctor hospital disease pain medicine patient virus cough infection symptom nurse",
    "sea": "ship ocean wave harbour sailor island fish coast boat tide anchor beach",
}
FORMS = (
    "They talked about the {word} for a long time.",
    "Nobody had expected the {word} to matter so much.",
    "In the end it was the {word} that she remembered.",
    "He wrote a short letter about the {word}.",
)


def concept_sentences() -> ClassedTexts:
    """Twelve words of each of six concepts in four forms; sentences of one word are a group."""
    out = ClassedTexts([], [], [])
    for concept, words in WORDS.items():
        for word in words.split():
            for form in FORMS:
                out.texts.append(form.format(word=word))
                out.labels.append(concept)
                out.groups.append(word)
    return out
