// Who the reader is: the key that lets them say something of features, kept in this browser.
import { getSelf, isWidget, say, undo, type EntryItem } from "./api";
import { KEY } from "./key";

type Entry = { kind: string; subject?: string; value: string | null };
const NEEDS: Record<string, string[]> = { rating: ["rate", "write"], vote: ["rate", "write"] };

class Me {
  on = $state(false); // whether the server keeps what people say
  person = $state<string | null>(null);
  problem = $state<string>();
  scopes = $state<string[]>([]);
  said = $state(0); // rises with every entry, so that pages read again

  constructor() {
    if (!isWidget) void this.read();
  }

  async read(): Promise<void> {
    try {
      const self = await getSelf();
      Object.assign(this, { on: self.on, person: self.person, scopes: self.scopes, problem: undefined });
    } catch (problem) {
      localStorage.removeItem(KEY); // nobody has it, or not any more
      Object.assign(this, { on: true, person: null, scopes: [], problem: problem instanceof Error ? problem.message : String(problem) });
    }
  }

  async use(key: string): Promise<void> {
    key ? localStorage.setItem(KEY, key) : localStorage.removeItem(KEY);
    await this.read();
  }

  may(kind: string): boolean {
    return (NEEDS[kind] ?? ["write"]).some((scope) => this.scopes.includes(scope));
  }

  async say(dictionary: string, feature: number, entry: Entry): Promise<void> {
    await this.keep(say(dictionary, feature, entry));
  }

  async undo(entry?: number): Promise<void> {
    await this.keep(undo(entry));
  }

  private async keep(answer: Promise<EntryItem>): Promise<void> {
    try {
      await answer;
      this.problem = undefined;
    } catch (problem) {
      this.problem = problem instanceof Error ? problem.message : String(problem);
    }
    this.said += 1;
  }
}

export const me = new Me();
