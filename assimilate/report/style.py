"""The look of the page (CSS) and its one movement (the slider over times)."""

CSS = """
:root{--ink:#16202a;--soft:#5b6773;--line:#e3e7eb;--paper:#fff;--wash:#f6f8fa;--accent:#0b6bb0}
*{box-sizing:border-box}
body{margin:0;background:var(--wash);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;-webkit-font-smoothing:antialiased}
main{max-width:1240px;margin:0 auto;padding:2.2rem 1.2rem 3rem}
header{margin-bottom:1.4rem}
.kicker{margin:0;color:var(--accent);font-weight:650;letter-spacing:.09em;text-transform:uppercase;font-size:.75rem}
h1{margin:.15rem 0 .4rem;font-size:clamp(1.5rem,3.6vw,2.3rem);line-height:1.15;letter-spacing:-.015em}
h2{margin:0 0 .8rem;font-size:1.12rem;letter-spacing:-.005em}
.lead{margin:.2rem 0 .9rem;max-width:52rem;color:#33404c}
.facts{display:flex;flex-wrap:wrap;gap:.45rem;margin:0;padding:0;list-style:none}
.facts li{background:var(--paper);border:1px solid var(--line);border-radius:99px;padding:.16rem .8rem;font-size:.84rem;
color:#33404c}
section{background:var(--paper);border:1px solid var(--line);border-radius:14px;padding:1.15rem 1.25rem;
margin:0 0 1.1rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.93rem}
th,td{padding:.46rem .7rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
thead th{color:var(--soft);font-weight:600;font-size:.8rem;vertical-align:bottom}
thead th small{display:block;font-weight:400;color:#8a95a0}
tbody th,thead th:first-child{text-align:left;font-weight:600}
tbody tr:last-child>*{border-bottom:0}
td.best{font-weight:750;color:#0a5a30}
td small{color:var(--soft);font-weight:400}
.dot{display:inline-block;width:.68em;height:.68em;border-radius:50%;margin-right:.5em;vertical-align:baseline}
.note{margin:.6rem 0 0;color:var(--soft);font-size:.84rem}.note:empty{display:none}
.plot{display:block;width:auto;max-width:100%;height:auto;margin:0 auto}
.bar{display:flex;flex-wrap:wrap;gap:.7rem 1.6rem;align-items:center;justify-content:space-between;margin-bottom:.8rem}
.control{display:flex;align-items:center;gap:.7rem;flex:1 1 22rem;max-width:36rem}
.control input{flex:1;min-width:6rem;accent-color:var(--accent)}
.control output{font-variant-numeric:tabular-nums;font-weight:600;font-size:.92rem;min-width:12.5em}
.control button{border:1px solid var(--line);background:var(--paper);border-radius:50%;width:2.1rem;height:2.1rem;
cursor:pointer;color:var(--accent);font-size:.8rem;line-height:1}
.control button:hover{background:var(--wash)}
.grid{display:grid;grid-template-columns:repeat(var(--columns),minmax(128px,1fr));gap:.8rem .7rem;
max-width:calc(var(--columns)*270px)}
figure{margin:0;min-width:0}
figcaption{font-size:.82rem;min-height:1.5em;display:flex;align-items:baseline;gap:0;margin-bottom:.2rem;
color:var(--soft);
white-space:nowrap;overflow:hidden}
figcaption b{color:var(--ink);font-weight:650;overflow:hidden;text-overflow:ellipsis}
figcaption small{margin-left:auto;padding-left:.5em;font-variant-numeric:tabular-nums}
figure img{display:block;width:100%;image-rendering:pixelated;border:1px solid var(--line);border-radius:5px;
background:#e2e5e8}
.legend{display:flex;align-items:flex-start;font-size:.72rem;color:var(--soft);font-variant-numeric:tabular-nums}
.legend i{display:block;width:2.3rem;height:.72rem;font-style:normal;position:relative;margin-bottom:1.15rem}
.legend i:first-child{border-radius:3px 0 0 3px}
.legend span{position:absolute;top:.8rem;left:0;transform:translateX(-50%);white-space:nowrap}
.legend i:first-child span{transform:none}
.legend em{font-style:normal;margin-left:.55rem;line-height:.75rem}
.legend.upright{flex-direction:column-reverse;align-items:flex-start;justify-content:flex-end;padding:.4rem 0 0 .2rem}
.legend.upright i{width:.9rem;height:1.35rem;margin:0;border-radius:0!important}
.legend.upright span{left:1.35rem;top:.62rem;transform:translateY(-50%)!important}
.legend.upright em{margin:0 0 .5rem;line-height:1.2}
.tasks tr.score th{padding-top:1.1rem;color:var(--soft);font-size:.84rem}
.tasks tr.score th small{font-weight:400;color:#8a95a0}.tasks a{color:var(--accent);text-decoration:none}
.expected td:first-child{font-weight:700;text-align:center}.pass td:first-child{color:#0a7a3d}
.fail td:first-child{color:#b3261e}
.expected td,.expected th{text-align:left;white-space:normal}
.expected td.source{white-space:normal;color:var(--soft);font-size:.84rem;min-width:16rem}
.failed{border-color:#e9b7b3;background:#fff6f5}.failed ul{margin:0;padding-left:1.2rem}
dl{display:grid;grid-template-columns:minmax(7rem,max-content) 1fr;gap:.3rem 1.2rem;margin:0;font-size:.86rem}
dt{font-weight:600;color:#33404c}dd{margin:0;color:var(--soft);overflow-wrap:anywhere}
details{margin-top:.9rem;font-size:.86rem}summary{cursor:pointer;color:var(--accent)}
pre{overflow:auto;background:var(--wash);border-radius:8px;padding:.8rem;font-size:.78rem}
@media(max-width:640px){main{padding:1.2rem .6rem}section{padding:.9rem .8rem;border-radius:10px}
dl{grid-template-columns:1fr}.plot{max-width:none;height:auto;min-width:44rem}dd{margin-bottom:.4rem}
.legend i{width:1.75rem}.control output{min-width:0}}
@media print{section{break-inside:avoid;border:0}.control button,.control input{display:none}}
"""

SCRIPT = """
document.querySelectorAll('section.maps').forEach(function(section){
  const data=JSON.parse(section.querySelector('script.frames').textContent);
  const slider=section.querySelector('input'),label=section.querySelector('output'),
    play=section.querySelector('button');
  if(!slider)return;
  function show(k){
    label.textContent=data.times[k];
    for(const key in data.frames)section.querySelector('[data-panel="'+key+'"] img').src=data.frames[key][k];
    for(const key in data.notes)section.querySelector('[data-panel="'+key+'"] small').textContent=data.notes[key][k];
  }
  slider.addEventListener('input',function(){show(+slider.value)});
  let timer=null;
  play.addEventListener('click',function(){
    if(timer){clearInterval(timer);timer=null;play.textContent='▶';return}
    play.textContent='❚❚';
    timer=setInterval(function(){slider.value=(+slider.value+1)%data.times.length;show(+slider.value)},450);
  });
});
"""
