// The reader's key goes with every request; nothing else sends it, so that no other page can speak in their name.
export const KEY = "key";

export function withKey(): Record<string, string> {
  const key = localStorage.getItem(KEY);
  return key ? { "x-api-key": key } : {};
}
