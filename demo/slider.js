// Gradio's slider between two images follows the mouse alone; this lets the keyboard move it, as ARIA has it.
() => {
  const HANDLE = "#slider [data-testid=slider]";
  const STEP = 0.05;

  const share = (handle) => {
    const frame = handle.parentElement.getBoundingClientRect(), own = handle.getBoundingClientRect();
    return {frame, at: (own.left + own.width / 2 - frame.left) / frame.width};
  };

  const tell = (handle) => handle.setAttribute("aria-valuenow", Math.round(100 * share(handle).at));

  const name = () => {
    for (const handle of document.querySelectorAll(HANDLE)) {
      if (handle.tabIndex === 0) continue;
      handle.tabIndex = 0;
      handle.setAttribute("role", "slider");
      handle.setAttribute("aria-label", "Border between the original and the edited image, in per cent");
      handle.setAttribute("aria-valuemin", 0);
      handle.setAttribute("aria-valuemax", 100);
      handle.addEventListener("focus", () => tell(handle));
    }
  };

  const drag = (handle, to) => {
    const {frame, at} = share(handle);
    const y = frame.top + frame.height / 2;
    const say = (target, event, x) => target.dispatchEvent(
      new MouseEvent(event, {bubbles: true, cancelable: true, view: window, clientX: x, clientY: y, buttons: 1})
    );
    say(handle, "mousedown", frame.left + at * frame.width);
    say(window, "mousemove", frame.left + to * frame.width);
    say(window, "mouseup", frame.left + to * frame.width);
    requestAnimationFrame(() => tell(handle));
  };

  document.addEventListener("keydown", (event) => {
    const handle = event.target.closest?.(HANDLE);
    if (!handle) return;
    const {at} = share(handle);
    const to = {
      ArrowLeft: at - STEP, ArrowDown: at - STEP, ArrowRight: at + STEP, ArrowUp: at + STEP, Home: 0, End: 1,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    drag(handle, Math.min(1, Math.max(0, to)));
  });
  new MutationObserver(name).observe(document.body, {childList: true, subtree: true});
  name();
}
