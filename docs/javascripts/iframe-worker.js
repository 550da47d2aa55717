// Browsers start no worker from a file. Where the site is read from a folder, what searches runs in a hidden frame instead.
"use strict";
if (location.protocol === "file:")
  window.Worker = class {
    constructor(path) {
      this.onmessage = this.onerror = this.onmessageerror = null;
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.inside = new Promise((start, fail) => {
        this.frame.addEventListener("load", () => {
          const inside = this.frame.contentWindow;
          // Copies, as between threads: either side changes what it is given.
          inside.postMessage = (data) => {
            const copy = structuredClone(data);
            setTimeout(() => this.onmessage?.({ data: copy }));
          };
          const script = inside.document.createElement("script");
          script.src = new URL(path, document.baseURI).href;
          script.addEventListener("load", () => start(inside));
          script.addEventListener("error", fail);
          inside.document.body.append(script);
        }, { once: true });
      });
      this.inside.catch((event) => this.onerror?.(event));
      (document.body ?? document.documentElement).append(this.frame);
    }

    postMessage(data) {
      const copy = structuredClone(data);
      this.inside.then((inside) => inside.onmessage?.({ data: copy }), () => {});
    }

    terminate() {
      this.frame.remove();
    }
  };
