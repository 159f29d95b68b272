// What a page shows: the last answer stays until the next one is there, so that nothing flashes or jumps.
export class Loader<T> {
  value = $state.raw<T>();
  error = $state<string>();
  busy = $state(false);
  private turn = 0;

  /** Loads anew; an answer that comes after a later question is dropped. Resolves when the page can be shown. */
  async load(answer: Promise<T>): Promise<boolean> {
    const turn = ++this.turn;
    this.busy = true;
    try {
      const value = await answer;
      if (turn !== this.turn) return false;
      this.value = value;
      this.error = undefined;
    } catch (problem) {
      if (turn !== this.turn) return false;
      this.error = problem instanceof Error ? problem.message : String(problem);
    }
    this.busy = false;
    return true;
  }
}
