"""Which language is a text in? By script, then by its most frequent words.

A script of one language decides alone. Within the Latin, Cyrillic and Arabic scripts the function
words of each language vote: "the", "der", "de la" say more than any number of nouns, and every
running text is full of them. Rivals that share short words have to stand in the table together
(without Finnish, its "on" would count as English).

FineWeb asks fastText's lid.176, a trained classifier; on long texts this comes close to it, and it
gives lists and gibberish low scores. Skip at first: the tables. Start at identify_language.
"""
import functools
import re
import unicodedata
from collections import Counter, defaultdict

SCRIPTS = (  # first and last code point, and the language or, in capitals, the family
    "0041-024F LATIN 1E00-1EFF LATIN 0370-03FF el 1F00-1FFF el 0400-052F CYRILLIC 0531-058F hy "
    "0591-05FF he 0600-06FF ARABIC 0750-077F ARABIC FB50-FDFF ARABIC FE70-FEFC ARABIC 0900-097F hi "
    "0980-09FF bn 0A00-0A7F pa 0A80-0AFF gu 0B80-0BFF ta 0C00-0C7F te 0C80-0CFF kn 0D00-0D7F ml "
    "0D80-0DFF si 0E00-0E7F th 0E80-0EFF lo 1000-109F my 10A0-10FF ka 1100-11FF ko AC00-D7AF ko "
    "1200-137F am 1780-17FF km 3040-30FF ja 3400-4DBF zh 4E00-9FFF zh"
)
# A paragraph a language: the family of its script, its code, its most frequent function words.
FUNCTION_WORDS = """
LATIN en the of and to in is that for it was on are as with his they at be this from have or by one
    had not but what all were we when your can said there an which she do their if will how about
    out them then these some her would him has more who its my than been you he i so no just our
    could
LATIN de der die das und ist in zu den von mit sich auf für nicht ein eine als auch es an werden aus
    er hat dass sie nach wird bei einer um am sind noch wie einem über einen so zum war haben nur
    oder aber vor zur bis mehr durch man dem des sein wenn ich wir ihr kann im
LATIN nl de het een en van in is dat op te zijn met voor niet die er aan om ook als dan maar bij of
    uit nog naar door over wordt deze heeft ik je worden kan zo wat hij tot meer geen veel wel hun
    werd
LATIN fr le la les de des du et est en un une que qui dans pour pas sur au avec ce il par plus ne se
    son sont ou mais nous vous aux cette elle comme tout être fait leur ses été sa même l d qu n c s
LATIN es el la los las de que y en un una es se no por con para su del al lo como más o pero sus le
    ha me sin sobre este ya entre cuando todo esta ser son dos también fue había era muy hasta desde
LATIN pt o a os as de que e do da em um uma é para com não no na se por mais dos das como mas foi ao
    ele ser quando muito nos já está eu também só pelo pela até isso ela entre era depois seu sua
    são
LATIN it il la di che e è un una in per non sono con del della i le si da lo gli al come più ma dei
    nel alla anche ha se questo delle o su ci essere stato fra tra era loro molto tutti ai l d
LATIN ca el la els les de que i en un una és per amb no del al es va com més o però seva seu aquest
    dels ha ser són també aquesta molt entre fins quan tot als pel sobre on han l d
LATIN ro și de la în a cu nu pe o un este care să din că se mai pentru sunt ce au fi ca dar după sau
    fost această acest lui ei prin până între fără foarte are către
LATIN sv och att det i en som är på för med av den till inte om ett har de jag var så men kan från
    vi eller när man ska efter också vid under där mot över än han hon blir nu sig sin
LATIN da og at det i en er på som for med af den til ikke de har et jeg var kan så men om fra vi
    eller når man skal efter også ved under der mod blev havde hun bliver hvor nu sig sin
LATIN no og at det i en er på som for med av den til ikke de har et jeg var kan så men om fra vi
    eller når man skal etter også ved under der mot ble hadde hun blir hvor nå seg sin
LATIN is og að í er á það sem til við um ekki en með var af fyrir eru ég hann hún þetta þá frá eða
    því hafa
LATIN fi ja on ei se että hän oli ovat mutta kun joka niin myös kuin sen tai jos mitä vain ole nyt
    minä hänen jo sitä siitä olla ollut voi sekä vielä mukaan jotka ennen tämä ne
LATIN et ja on ei et see ta oli kui ka mis aga või siis seda oma kes ma nii nagu välja pole veel
    ning olid
LATIN hu a az és hogy nem is egy van meg ez de volt csak azt még már el ha vagy mint ami ki majd
    lehet kell
LATIN pl i w na z nie się do że jest to o jak po co ale od za przez dla tym tak może jego już są był
    być oraz przy które który tylko także czy ze jako tego lub jej
LATIN cs a v na se je že s z do to o i ve pro ale si jako po jsem od by za které jeho nebo jsou
    který byl bylo až při také podle této už tak není jen ze k
LATIN sk a v na sa je že s z do to o i vo pre ale si ako po som od by za ktoré jeho alebo sú ktorý
    bol bolo
LATIN sl in je na v se da so za z ne pa bi ki po kot tudi o ali s od kako še bil že le do pri tako
    lahko
LATIN hr i je u na se da su za od s ne koji a što o iz kao bi po ili ali samo sve to ga nije koje te
    već
LATIN lt ir yra į kad su iš ne tai bet kaip buvo jo už apie tik ar nuo dar jie prie gali per po taip
    jos
LATIN lv un ir ar no ka uz par kas bet tas arī vai to pie gan ja lai pēc bija tikai kā būt viņš savu
    līdz
LATIN sq dhe në të e për me një që është nga si u ka i se nuk do ishte janë por edhe më kjo ky duke
    pas
LATIN tr ve bir bu için de da ile olarak çok olan daha gibi en ne kadar sonra var her o ama değil
    ise olduğu ya mi şey diye ben kendi göre
LATIN id yang dan di dari untuk dengan ini itu pada adalah tidak dalam akan ke juga atau oleh ada
    mereka saya telah bisa karena sudah kita seperti lebih tersebut dia
LATIN vi và của là có trong được cho không một các với những người này để khi đã về từ như cũng ra
    đến
LATIN tl ang ng sa na mga ay at ni si kay para ito hindi may kung siya ko niya nang mo lang din rin
LATIN sw ya na wa kwa katika ni la za kuwa cha hii huo yake huyo kama hiyo pia watu baada lakini
    kutoka
LATIN af die van en in is het dit nie wat vir om te op met word aan ook hy sy as by was kan daar sal
    hulle
CYRILLIC ru и в не на что я с он как это по но из у за от же для так все бы его то было только мы к
    о был или ещё еще если когда есть она они мне до вы
CYRILLIC uk і в не на що я з він як це по але із у за від же для так все би його то було тільки ми
    до та або ще
CYRILLIC bg и в не на че аз с той как това по но от за са да се ще е към които при до му го или може
    само има
CYRILLIC sr и у не на да је се са за од су који а што о из као би по или али то га није које већ био
    јер може
ARABIC ar في من على أن إلى التي عن مع هذا الذي ما لا هذه كان أو بعد كما قد لم بين كل ذلك و يوم كانت
    هو هي
ARABIC fa و در به از که این را با است برای آن یک خود تا کرد بر هم نیز می شد شده باید اما ما کند بود
    های هر
ARABIC ur کے کی میں ہے کا اور سے کو نے پر یہ کہ ہیں اس ہو تھا بھی ایک جو تو نہیں لیے گیا وہ کر اپنے
    تھے
"""
WORD = re.compile(r"[^\W\d_]+")
LANGUAGE_SAMPLE = 10_000  # characters looked at; 1,500 words are more than enough


@functools.cache
def language_tables():
    """code point -> language or family; family -> {word: the languages that have it}."""
    scripts, words = {}, defaultdict(lambda: defaultdict(list))
    for span, name in re.findall(r"(\S+) (\S+)", SCRIPTS):
        first, last = (int(point, 16) for point in span.split("-"))
        scripts.update(dict.fromkeys(range(first, last + 1), name))
    for line in FUNCTION_WORDS.replace("\n    ", " ").strip().split("\n"):
        family, code, *listed = line.split()
        for word in listed:
            words[family][word].append(code)
    return scripts, words


def identify_language(text):
    """(code, score in 0..1), ("und", 0.0) without letters.

    A word found in k of the lists gives each of them 1/k point. With b and r the points of the
    winner and of the runner-up, f the share of the winner's words among all words:
    score = share of the script's letters x min(1, f / 0.20) x b^2 / (b^2 + r^2).
    "their" among nine unknown words: 1 x 0.1 / 0.20 x 1 = 0.5, under the threshold of 0.65. With
    b = 30 and r = 10 the last factor is 900 / 1000; with b = r it is 1/2, and nothing passes."""
    scripts, words = language_tables()
    text = unicodedata.normalize("NFC", text[:LANGUAGE_SAMPLE])
    letters = Counter()
    for character, n in Counter(text).items():
        if character.isalpha():
            letters[scripts.get(ord(character), "und")] += n
    if letters["ja"] * 10 > letters["zh"]:  # Japanese mixes its kana with Chinese characters
        letters["ja"] += letters.pop("zh", 0)
    if not letters.total():
        return "und", 0.0
    script, n = letters.most_common(1)[0]
    share = n / letters.total()
    if script not in words:
        return script, 0.0 if script == "und" else share
    points, found, counts = Counter(), Counter(), Counter(WORD.findall(text.lower()))
    for word, n in counts.items():
        codes = words[script].get(word, ())  # not words[script][word]: that would add the word
        for code in codes:
            points[code] += n / len(codes)
            found[code] += n
    if not points:
        return "und", 0.0
    (winner, b), (_, r) = (points.most_common(2) + [("", 0)])[:2]
    frequent = min(1, found[winner] / counts.total() / 0.20)
    return winner, share * frequent * b * b / (b * b + r * r)
