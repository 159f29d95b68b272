// Features that the reader pinned, kept in this browser; their list has an address that can be sent on.
const KEY = "pins";
const read = (): Record<string, number[]> => JSON.parse(localStorage.getItem(KEY) ?? "{}") as Record<string, number[]>;

class Pins {
  private lists = $state(read());

  /** The pinned features of a dictionary, in the order in which they were pinned. */
  of(dictionary: string): number[] {
    return this.lists[dictionary] ?? [];
  }

  has(dictionary: string, feature: number): boolean {
    return this.of(dictionary).includes(feature);
  }

  /** Pins a feature, or takes its pin away. */
  toggle(dictionary: string, feature: number): void {
    const list = this.of(dictionary);
    this.lists[dictionary] = list.includes(feature) ? list.filter((f) => f !== feature) : [...list, feature];
    localStorage.setItem(KEY, JSON.stringify(this.lists));
  }
}

export const pins = new Pins();
