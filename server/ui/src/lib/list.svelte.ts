// The list that the reader came from, so that the next and previous feature are those of the list.
import { isSite } from "./api";

interface List {
  dictionary: string;
  features: number[];
  address: string; // of the page that showed it
}

const KEY = "list";

export function remember(list: List): void {
  sessionStorage.setItem(KEY, JSON.stringify(list));
}

/** Neighbours of a feature in the list it was found in; by number if it is in none. */
export function around(dictionary: string, feature: number, n: number): { previous?: number; next?: number; back?: string } {
  const list = JSON.parse(sessionStorage.getItem(KEY) ?? "null") as List | null;
  const place = list?.dictionary === dictionary ? list.features.indexOf(feature) : -1;
  if (isSite && place < 0) return {};
  if (!list || place < 0) return { ...(feature > 0 && { previous: feature - 1 }), ...(feature + 1 < n && { next: feature + 1 }) };
  const previous = list.features[place - 1];
  const next = list.features[place + 1];
  return { ...(previous !== undefined && { previous }), ...(next !== undefined && { next }), back: list.address };
}
