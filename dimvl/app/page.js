// Runs once, when the place for images appears. `element` is that place; `trigger` sends an event to the server.

// An image that is chosen, dropped anywhere, or pasted goes to the server as it is, in base64.
const input = () => element.querySelector("input[type=file]");
const send = file => {
    if (!file) return;
    const about = {name: file.name, size: file.size};
    if (file.size > IMAGE_BYTES) return trigger("upload", about);
    const reader = new FileReader();
    reader.onloadend = () => trigger("upload", {...about, content: String(reader.result ?? "").split(",")[1] ?? ""});
    reader.readAsDataURL(file);
};
element.addEventListener("click", event => {
    if (event.target.closest(".dv-choose")) input().click();
});
element.addEventListener("change", event => {
    send(event.target.files?.[0]);
    event.target.value = "";
});
const held = event => [...(event.dataTransfer?.types ?? [])].includes("Files");
document.addEventListener("dragover", event => {
    if (!held(event)) return;
    event.preventDefault();
    document.body.classList.add("dv-dragging");
});
document.addEventListener("dragleave", event => {
    if (!event.relatedTarget) document.body.classList.remove("dv-dragging");
});
document.addEventListener("drop", event => {
    document.body.classList.remove("dv-dragging");
    if (!held(event)) return;
    event.preventDefault();
    send(event.dataTransfer.files[0]);
});
document.addEventListener("paste", event => {
    const file = event.clipboardData?.files[0];
    if (file) send(file);
});

// The regions of what is pointed at, has the focus or was tapped: a veil over the image, open where they are.
const shape = (tag, sides) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(sides)) made.setAttribute(name, value);
    return made;
};
const show = item => {
    const veil = document.querySelector(".dv-veil");
    if (!veil) return;
    veil.replaceChildren();
    document.querySelector(".dv-said").textContent = item?.dataset.said ?? "";
    veil.parentElement.classList.toggle("dv-veiled", Boolean(item));
    if (!item) return;
    const all = {x: 0, y: 0, width: 100, height: 100};
    const mask = shape("mask", {id: "dv-mask"});
    mask.append(shape("rect", {...all, fill: "white"}));
    const frames = JSON.parse(item.dataset.marks).reverse().map(([left, top, right, bottom, heat]) => {
        const sides = {x: left, y: top, width: right - left, height: bottom - top};
        mask.append(shape("rect", {...sides, fill: "black", "fill-opacity": heat}));
        return shape("rect", {...sides, class: "dv-hot", "stroke-opacity": heat});
    });
    veil.append(mask, shape("rect", {...all, class: "dv-cold", mask: "url(#dv-mask)"}), ...frames);
};
const item = event => event.target.closest?.("[data-marks]");
let chosen = null;
for (const name of ["pointerover", "focusin"]) document.addEventListener(name, event => item(event) && show(item(event)));
for (const name of ["pointerout", "focusout"]) {
    document.addEventListener(name, event => item(event) && show(chosen?.isConnected ? chosen : null));
}
document.addEventListener("click", event => {
    chosen = item(event) === chosen ? null : item(event);
    show(chosen);
});
