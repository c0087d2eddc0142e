// Functions that find elements by their visible names. The tests run this file in a page before the page's own script.
window.__named = (tag, text) => [...document.querySelectorAll(tag)].find((e) => e.textContent.trim() === text);
window.__button = (text) => __named('button', text);
window.__field = (text) => __named('label', text)?.control;
window.__frame = () => new Promise(requestAnimationFrame);
window.__centre = async (find, use = () => {}) => {
    await __frame().then(__frame); // a pending layout change could still move the element
    const element = find();
    if (!element) return null;
    element.scrollIntoView({ block: 'nearest', behavior: 'instant' });
    const box = element.getBoundingClientRect();
    const centre = { x: box.x + box.width / 2, y: box.y + box.height / 2 };
    const hit = document.elementFromPoint(centre.x, centre.y);
    if (element !== hit && !element.contains(hit)) return null;
    use(element);
    return centre;
};
window.__aim = (find) => __centre(find, (element) => {
    window.__hit = false;
    element.addEventListener('click', () => { window.__hit = true; }, { capture: true, once: true });
});
