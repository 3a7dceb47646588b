"use strict";
(async () => {
  const spec = JSON.parse(document.getElementById("case").textContent);
  const controls = document.getElementById("controls");
  const place = document.getElementById("place");
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const group = (title, ...children) => {
    controls.append(make("fieldset", {}, make("legend", {}, title), ...children));
  };
  if (!document.createElement("canvas").getContext("webgl2")) {
    place.className = "error";
    place.textContent = "This browser does not draw with WebGL 2, which the viewer needs.";
    return;
  }

  const nv = new niivue.Niivue({
    backColor: [0, 0, 0, 1],
    crosshairColor: [0.4, 0.75, 1, 0.8],
    crosshairWidth: 0.25,
    crosshairWidthUnit: "percent",
    isNearestInterpolation: true,
    crosshairGap: 6,
    dragAndDropEnabled: false,
    isRadiologicalConvention: true,
    show3Dcrosshair: true,
    isOrientCube: false,
    loadingText: "",
    logLevel: "error",
    onLocationChange: (location) => tell(location),
  });
  await nv.attachTo("canvas");

  // What is drawn, in this order: a channel, then truth, prediction, disagreement.
  const channels = [];
  let channel = 0;
  const load = (entry, name, options) =>
    niivue.NVImage.loadFromBase64({ base64: entry.data, name: `${name}.nii.gz`, ...options });
  const loadChannel = async (index) => {
    const entry = spec.channels[index];
    channels[index] ??= await load(entry, entry.name, {
      colormap: "gray", cal_min: entry.low, cal_max: entry.high,
    });
    return channels[index];
  };
  // Of truth and prediction the latter is shown at first: two alike would hide each other.
  const shownFirst = spec.overlays.find((entry) => entry.name === "Prediction") ?? spec.overlays[0];
  const strength = (entry) => (entry.name === "Disagreement" ? 0.8 : 0.45);
  const overlays = [];
  for (const entry of spec.overlays) {
    overlays.push(await load(entry, entry.name, { opacity: entry === shownFirst ? strength(entry) : 0 }));
  }
  const visible = new Set(spec.layers.map((_, index) => index));
  const paint = () => {
    overlays.forEach((volume, index) => {
      const layers = spec.overlays[index].name === "Disagreement"
        ? [{ name: "differs", colour: [255, 0, 200], on: true }]
        : spec.layers.map((layer, i) => ({ ...layer, on: visible.has(i) }));
      volume.setColormapLabel({
        R: [0, ...layers.map((l) => l.colour[0])],
        G: [0, ...layers.map((l) => l.colour[1])],
        B: [0, ...layers.map((l) => l.colour[2])],
        A: [0, ...layers.map((l) => (l.on ? 255 : 0))],
        I: [0, ...layers.map((_, i) => i + 1)],
        labels: ["", ...layers.map((l) => l.name)],
      });
    });
    nv.updateGLVolume();
  };
  const show = async (index) => {
    channel = index;
    const image = await loadChannel(index);
    // All at once, not by addVolume: each call of that makes the textures of all volumes again.
    nv.volumes = [image, ...overlays];
    [nv.back, ...nv.overlays] = nv.volumes;
    low.value = image.cal_min;
    high.value = image.cal_max;
    paint();
    nv.createOnLocationChange();  // the value under the cross hair is another channel's now
  };

  const tell = ({ mm, values }) => {
    const voxel = spec.toVoxel.map((row) =>
      Math.round(row[0] * mm[0] + row[1] * mm[1] + row[2] * mm[2] + row[3]));
    const [image, ...labels] = values;
    if (!image) return;
    const found = labels.slice(0, 2).filter((_, i) => spec.overlays[i].name !== "Disagreement")
      .map((label, i) => `${spec.overlays[i].name}: ${spec.layers[label.value - 1]?.name ?? "none"}`);
    const millimetres = Array.from(mm).slice(0, 3).map((v) => v.toFixed(1)).join(", ");
    place.textContent = [
      `voxel ${voxel.join(", ")}`, `${millimetres} mm`,
      `${spec.channels[channel].name} ${Number(image.value.toPrecision(7))}`, ...found,
    ].join("   ·   ");
    place.dataset.voxel = JSON.stringify(voxel);
    place.dataset.value = image.value;
  };

  const views = {
    "Planes": nv.sliceTypeMultiplanar, "Axial": nv.sliceTypeAxial,
    "Coronal": nv.sliceTypeCoronal, "Sagittal": nv.sliceTypeSagittal, "3D": nv.sliceTypeRender,
  };
  const buttons = Object.entries(views).map(([name, type]) => {
    const button = make("button", { type: "button", "aria-pressed": name === "Planes" }, name);
    button.onclick = () => {
      nv.setSliceType(type);
      buttons.forEach((other) => other.setAttribute("aria-pressed", other === button));
    };
    return button;
  });
  group("View", make("div", { class: "views" }, ...buttons));

  const select = make("select", { "aria-label": "Channel" },
    ...spec.channels.map((entry, index) => make("option", { value: index }, entry.name)));
  select.onchange = () => show(Number(select.value));
  const low = make("input", { type: "number", step: "any", "aria-label": "black" });
  const high = make("input", { type: "number", step: "any", "aria-label": "white" });
  low.onchange = high.onchange = () => {
    if (!(Number(low.value) < Number(high.value))) return;
    nv.volumes[0].cal_min = Number(low.value);
    nv.volumes[0].cal_max = Number(high.value);
    nv.updateGLVolume();
  };
  nv.onIntensityChange = (volume) => {
    low.value = Number(volume.cal_min.toPrecision(4));
    high.value = Number(volume.cal_max.toPrecision(4));
  };
  group("Image", make("label", {}, select),
    make("label", {}, make("span", { class: "name" }, "black"), low),
    make("label", {}, make("span", { class: "name" }, "white"), high));

  spec.overlays.forEach((entry, index) => {
    const box = make("input", { type: "checkbox" });
    const range = make("input", { type: "range", min: 0.05, max: 1, step: 0.05, value: strength(entry) });
    box.checked = overlays[index].opacity > 0;
    box.onchange = range.oninput = () => {
      nv.setOpacity(index + 1, box.checked ? Number(range.value) : 0);
    };
    box.dataset.overlay = entry.name;
    const key = entry.name[0].toLowerCase();
    document.addEventListener("keydown", (event) => {
      if (event.key === key && event.target.tagName !== "INPUT") box.click();
    });
    group(entry.name, make("label", {}, box, `shown (key ${key})`),
      make("label", { class: "slider" }, "opacity", range));
  });
  if (spec.layers.length) {
    group("Labels", ...spec.layers.map((layer, index) => {
      const box = make("input", { type: "checkbox" });
      box.checked = true;
      box.dataset.layer = layer.name;
      box.onchange = () => {
        if (box.checked) visible.add(index); else visible.delete(index);
        paint();
      };
      const swatch = make("span", { class: "swatch" });
      swatch.style.background = `rgb(${layer.colour})`;
      return make("label", {}, box, swatch, make("span", { class: "name" }, layer.name));
    }));
  }
  const help = "Wheel: slices. Click: cross hair. Right drag: window."
    + (spec.oriented ? " The patient's right is on the left." : "");
  controls.append(make("p", { class: "note" }, help));
  if (spec.note) controls.append(make("p", { class: "note", id: "cut" }, `This page shows a part: ${spec.note}.`));

  await show(0);
  // The cross hair in the middle of what is labelled.
  const centre = spec.centre;
  if (centre) nv.scene.crosshairPos = nv.mm2frac(centre);
  nv.setSliceType(nv.sliceTypeMultiplanar);
  nv.setMultiplanarLayout?.(2);
  nv.drawScene();
  nv.createOnLocationChange();
  window.viewer = nv;
  document.body.dataset.ready = "true";
})().catch((error) => {
  const place = document.getElementById("place");
  place.className = "error";
  place.textContent = `The case could not be drawn: ${error.message}`;
  throw error;
});
