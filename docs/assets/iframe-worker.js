// A browser starts no Worker for a page that was opened from a folder (file://). Search needs one.
// There, a Worker is a hidden frame that runs the same script. Both talk by messages, which arrive
// later and as copies, as those of a Worker do.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(address) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      const inside = this.frame.contentWindow;
      inside.postMessage = (data) => {
        const event = new MessageEvent("message", { data: structuredClone(data) });
        setTimeout(() => (this.onmessage ? this.onmessage(event) : this.dispatchEvent(event)));
      };
      this.ready = new Promise((loaded) => {
        const script = inside.document.createElement("script");
        script.src = new URL(address, location.href);
        script.onload = loaded;
        inside.document.body.append(script);
      });
    }
    postMessage(data) {
      const inside = this.frame.contentWindow;
      const event = new inside.MessageEvent("message", { data: structuredClone(data) });
      this.ready.then(() =>
        setTimeout(() => (inside.onmessage ? inside.onmessage(event) : inside.dispatchEvent(event))),
      );
    }
    terminate() {
      this.frame.remove();
    }
  };
}
