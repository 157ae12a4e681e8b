// The page's own script: the state in the address, the slider over two pictures, and the tour.
const pdlab = {
    stops: ['guess', 'compare-steps', 'compare-rows', 'curve-plot', 'lineage-noise', 'bench-run', 'lab-teach'],
    link(names, values) {
        const address = new URL(location.href);
        names.forEach((name, k) => {
            const value = values[k];
            if (value === null || value === undefined || value === '') address.searchParams.delete(name);
            else address.searchParams.set(name, Array.isArray(value) ? value.join(',') : String(value));
        });
        // A tab that a visitor chose is a place to come back to.
        const moved = names[0] === 'tab' && address.href !== location.href;
        history[moved ? 'pushState' : 'replaceState'](null, '', address);
    },
    chosen() { // the tab that is shown goes into the address: Gradio's own event also speaks of tabs that are not
        const title = document.querySelector('#tabs button[role=tab][aria-selected=true]');
        const tab = title && (title.dataset.tabId || title.id.replace(/-button$/, ''));
        if (tab) pdlab.link(['tab'], [tab]);
    },
    used: () => {
        try { return JSON.parse(localStorage.getItem('pdlab.tour')) || []; } catch { return []; }
    },
    mark(stop) {
        const used = new Set(pdlab.used());
        if (stop) used.add(stop);
        try { localStorage.setItem('pdlab.tour', JSON.stringify([...used])); } catch { /* private window */ }
        document.querySelectorAll('[data-stop]').forEach(item => {
            if (used.has(item.dataset.stop)) item.querySelector('.done').textContent = 'done';
        });
    },
    go(tab, target) {
        const titles = [...document.querySelectorAll('#tabs button[role=tab]')];
        const wanted = titles.find(title => title.dataset.tabId === tab) || titles.find(title => title.id.startsWith(tab + '-'));
        if (tab && wanted) wanted.click();
        setTimeout(() => {
            const control = document.getElementById(target);
            if (!control) return;
            control.scrollIntoView({behavior: 'smooth', block: 'center'});
            control.classList.add('pointed');
            setTimeout(() => control.classList.remove('pointed'), 4000);
        }, 300);
    },
};
['click', 'keyup'].forEach(kind => document.addEventListener(kind, event => {
    if (event.target.closest && event.target.closest('#tabs [role=tab]')) setTimeout(pdlab.chosen, 50);
}));
addEventListener('popstate', () => location.reload()); // the address holds all there is to show
document.addEventListener('input', event => {
    if (event.target.matches('input.border')) {
        const pair = event.target.parentElement.querySelector('.pair');
        pair.style.setProperty('--at', event.target.value + '%');
    }
});
['click', 'input'].forEach(kind => document.addEventListener(kind, event => {
    const go = event.target.closest('[data-go]');
    if (kind === 'click' && go) return pdlab.go(go.dataset.go, go.dataset.target);
    const stop = pdlab.stops.find(stop => event.target.closest('#' + stop));
    // Of the curve only its points count.
    if (stop && (stop !== 'curve-plot' || event.target.closest('[data-key]'))) pdlab.mark(stop);
    else if (kind === 'click' && event.target.closest('[role=tab]')) setTimeout(() => pdlab.mark(), 300);
}, true));
setInterval(() => { if (document.querySelector('[data-stop]')) pdlab.mark(); }, 2000);
