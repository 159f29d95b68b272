// Which texts a dictionary is indexed on. A page of a feature asks again and again, the server once in a while.
import { getDictionary } from "./api";

export type Texts = { text: string | null; isFirstLook: boolean; others: { id: string; text: string | null }[] };
const FRESH_MS = 15_000; // a first look becomes the whole while people read
const known = new Map<string, { at: number; texts: Promise<Texts> }>();

export function textsOf(dictionary: string): Promise<Texts> {
  const found = known.get(dictionary);
  if (found && Date.now() - found.at < FRESH_MS) return found.texts;
  const texts = getDictionary(dictionary).then((d) => ({ text: d.text, isFirstLook: d.is_first_look, others: d.other_texts }));
  known.set(dictionary, { at: Date.now(), texts });
  return texts;
}
