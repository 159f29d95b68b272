// Single keys as shortcuts, which can be switched off (WCAG 2.1.4).
export const keys = $state({ on: localStorage.getItem("keys") !== "off", help: false });

export function switchKeys(): void {
  keys.on = !keys.on;
  localStorage.setItem("keys", keys.on ? "on" : "off");
}

/** Whether a key press is a shortcut: not typed into a field, and without Ctrl, Alt or Cmd. */
export function isShortcut(event: KeyboardEvent): boolean {
  const field = (event.target as HTMLElement).closest('input:not([type="checkbox"]), select, textarea, dialog');
  return keys.on && !event.ctrlKey && !event.metaKey && !event.altKey && !field;
}
