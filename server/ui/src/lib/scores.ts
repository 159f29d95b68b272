// What every score means, in a sentence (docs/interpretation.md says more).
import type { ScoreItem } from "./api";

const NAMES: Record<string, string> = {
  balanced_accuracy: "balanced accuracy", true_negative_rate: "true negative rate", confidence_of_strongest: "of the strongest windows",
  cosine_gain: "cosine gain", auc: "AUC", ablation_kl: "KL after ablation, nats", promoted_shift: "rise of its promoted logits", f2: "F2",
};

/** Scorer and metric, without saying a word twice. */
export function scoreName(score: ScoreItem): string {
  const scorer = score.scorer.replaceAll("_", " ");
  const metric = NAMES[score.metric] ?? score.metric.replaceAll("_", " ");
  return scorer === metric ? scorer : `${scorer}: ${metric}`;
}

export const SENTENCES: Record<string, string> = {
  "rule f2": "How well the label's rule finds strong firings among all held-out tokens; recall counts twice as much as precision.",
  "rule precision": "Of the held-out tokens that the rule names, the share on which the feature fires strongly.",
  "confidence confidence": "Mean of recall and of the true negative rate, on windows drawn evenly from the upper half of activations and silent ones.",
  "confidence confidence_of_strongest": "The same on the stored windows, most of them the strongest: flattering.",
  "confidence recall": "Of windows in which the feature fires, the share that the label names.",
  "confidence true_negative_rate": "Of windows in which it is silent, the share that the label leaves out.",
  "confidence precision": "Of windows that the label names, the share in which the feature fires. Half of these windows fire, so it is higher than the rule's.",
  "token_lookup correlation": "How much of the activation a table by token alone explains; chance is 0.",
  "ngram auc": "How well tokens and pairs of tokens tell windows in which it fires from others.",
  "coherence cosine_gain": "How much more its windows' words resemble each other than random windows' do; chance is 0.",
  "intervention ablation_kl": "How far the next-token distribution moves when the feature is removed.",
  "intervention promoted_shift": "How much more than others the tokens that it promotes rise when the feature is raised.",
  "detection balanced_accuracy": "A judge reads the label and says which windows it fits.",
  "fuzzing balanced_accuracy": "A judge reads the label and says in which windows the right tokens are marked.",
};
