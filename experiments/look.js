// What is wrong with the figures of this page goes to an attribute of its body; see look.
const wrong = [];
const box = (element) => element.getBoundingClientRect();
const inside = (a, b) =>
    a.left >= b.left - 1 && a.right <= b.right + 1 && a.top >= b.top - 1 && a.bottom <= b.bottom + 1;
const overlap = (a, b) =>
    a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;

for (const figure of document.querySelectorAll("figure")) {
    const name = figure.querySelector("figcaption").textContent;
    const svg = figure.querySelector("svg");
    const marks = [...svg.querySelectorAll("polygon")];
    const texts = [...svg.querySelectorAll("text")].filter((text) => text.textContent.trim());
    if (marks.length != figure.dataset.marks || !marks.length) {
        wrong.push(`${name}: ${marks.length} marks instead of ${figure.dataset.marks}`);
    }
    for (const element of [...marks, ...texts]) {
        const at = box(element);
        const what = element.textContent.trim() || "a mark";
        if (!at.width || !at.height) wrong.push(`${name}: ${what} is not seen`);
        if (!inside(at, box(svg))) wrong.push(`${name}: ${what} leaves the figure`);
    }
    texts.forEach((a, number) => {
        for (const b of texts.slice(number + 1)) {
            if (overlap(box(a), box(b))) {
                wrong.push(`${name}: ${a.textContent.trim()} overlaps ${b.textContent.trim()}`);
            }
        }
    });
}
const page = document.documentElement;
if (page.scrollWidth > page.clientWidth) wrong.push("the page is wider than the window");
document.body.dataset.look = wrong.join("|") || "good";
document.body.dataset.height = Math.ceil(document.body.scrollHeight) + 100;
