// The mesh that run.mjs expects, made up.

import { Fake, TOKEN } from "./fake.mjs";

export class FakeMesh {
  token = TOKEN;

  static async start(markup) {
    const mesh = new FakeMesh();
    mesh.markup = markup;
    mesh.#make(1);
    mesh.url = await mesh.fake.listen();
    return mesh;
  }

  #make(incarnation) {
    this.fake = new Fake({ names: ["r1", "r2", "r3"], terminals: 0, sessions: 0, rate: 0 });
    this.fake.incarnation = incarnation;
    this.fake.addTerminal("cam-1", "camera", { note: this.markup });
    this.fake.addTerminal("desk-1");
    this.fake.addTerminal("late-1");
    this.fake.logOut("late-1");
  }

  async do(word) {
    const { fake } = this;
    if (word === "start-late") fake.logIn("late-1");
    else if (word === "stop-late") this.fake.logOut("late-1");
    else if (word === "open-session") fake.openSession("desk-1", "cam-1", "echo");
    else if (word === "kill-relay") await fake.close();
    else if (word === "start-relay") {
      const port = new URL(this.url).port;
      this.#make(2);
      this.fake.logIn("late-1");
      await this.fake.listen(Number(port));
    }
  }

  stop() {
    return this.fake.close();
  }
}
