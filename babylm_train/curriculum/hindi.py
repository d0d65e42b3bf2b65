"""Hindi morphology by rule: how many case, verb and compound marks a text holds. No tagger, no outside data.

The first half is tables for a linguist to read and correct; an entry carries its reason where it is not obvious. The
second half counts. Each distinct token is analysed once; what spans several words (के बारे में, किया गया, बार बार,
जो ... वह) is then found by comparing neighbours in numpy, never across punctuation.

Look-up form: tables and text are compared without ZWJ and ZWNJ, without the nukta (पढना and पढ़ना, तरफ and तरफ़ are both
written, and U+0958-095F fall apart under NFC anyway) and with ँ as ं (हूँ and हूं). So one spelling of an entry suffices.

Accepted noise, measured on UD_Hindi-PUD (commit 8bc630f, the 987 of 1 000 sentences whose tokens are single words here;
measured after the tables were made): of 507 की, 55 are the verb; the rule for की गई sees 21 of them, 34 (6.7 % of all
की) count as case. All 586 पर and से are postpositions. Of the words with a verb mark 98.6 % are verbs or auxiliaries;
of verbs and auxiliaries 88 % have one, and nearly all others are bare stems, which have none by definition, or की.
"""

import hashlib
import re
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

# --- Case -------------------------------------------------------------------------------------------------------------

POSTPOSITIONS = "ने को से में पर का की के तक"
# में without its anusvara is a common slip and hardly another word.
POSTPOSITION_SLIPS = "मे"

# Pronouns fused with a postposition are a closed list. Never a suffix rule: अपने, सामने, महीने, सपने, माने end in ने and
# are not ergative. Each row: oblique stems, then the postpositions they are written together with.
FUSED_PRONOUNS = (
    ("मैं तू हम तुम आप उस इस किस जिस उन्हों इन्हों जिन्हों किन्हों सब किसी", "ने"),
    ("मै उन्हो इन्हो जिन्हो", "ने"),  # the same without the anusvara, frequent in web text
    ("मुझ तुझ हम तुम आप उस इस किस जिस उन इन किन जिन सब किसी", "को से में पर तक मे"),
    ("आप उस इस किस जिस उन इन किन जिन सब किसी", "का की के"),
    ("मे ते हमा तुम्हा", "रा रे री"),  # the old genitive of the first and second person
    ("मुझ तुझ उस इस किस जिस", "े"),  # dative मुझे उसे ...
    ("हम", "ें े"),  # हमें; हमे without anusvara
    ("तुम्ह उन्ह इन्ह जिन्ह किन्ह", "ें े"),
)

# A compound postposition is one case mark, carried by its first word; its other words carry no mark of any kind, so में
# in के बारे में is not counted again and लिए in के लिए is no perfective of लेना.
COMPOUND_POSTPOSITIONS = {
    "के": (
        "लिए, लिये, साथ, साथ में, साथ ही, द्वारा, पास, पास से, पास में, बाद, बाद से, बाद में, पहले, "
        "पूर्व, आगे, पीछे, ऊपर, ऊपर से, नीचे, नीचे से, अंदर, अन्दर, अंदर से, भीतर, भीतर से, बाहर, "
        "बाहर से, बीच, बीच में, बीच से, मध्य, मध्य में, सामने, सामने से, समक्ष, निकट, नजदीक, करीब, "
        "आसपास, चारों ओर, किनारे, बारे में, विषय में, संबंध में, सम्बन्ध में, संदर्भ में, मामले में, "
        "रूप में, तौर पर, नाम पर, नाम से, आधार पर, बल पर, कारण, कारण से, मारे, चलते, जरिए, जरिये, "
        "माध्यम से, बजाय, बदले, बदले में, सिवा, सिवाय, अलावा, अतिरिक्त, बिना, बगैर, बावजूद, विरुद्ध, "
        "खिलाफ, अनुसार, मुताबिक, अनुरूप, समान, बराबर, योग्य, लायक, प्रति, दौरान, अंतर्गत, तहत, समय, "
        "वक्त, यहां, यहां से, हवाले से, वास्ते, खातिर, पक्ष में, हेतु, उपरांत, पश्चात, साथ साथ, पार, तले"
    ),
    "की": (
        "ओर, ओर से, ओर को, तरफ, तरफ से, तरह, तरह से, भांति, वजह से, जगह, जगह पर, बजाय, अपेक्षा, "
        "तुलना में, खातिर, मदद से, सहायता से, बदौलत, दृष्टि से, दिशा में, खोज में, तलाश में, बाबत, मार्फत"
    ),
    "से": "पहले, पूर्व, बाहर, ऊपर, नीचे, आगे, पीछे, दूर, परे, अलग, लेकर, होकर",
    "इस": "लिए, लिये",  # इस लिए, किस लिए: a bare oblique pronoun does for के
}
# What may stand for the first word besides itself. अपना is no case mark alone (it agrees like an adjective).
COMPOUND_HEADS = {
    "के": "अपने उसके इसके किसके जिसके उनके इनके किनके जिनके आपके सबके किसीके मेरे तेरे हमारे तुम्हारे",
    "की": "अपनी उसकी इसकी किसकी जिसकी उनकी इनकी किनकी जिनकी आपकी सबकी मेरी तेरी हमारी तुम्हारी",
    "से": "उससे इससे किससे जिससे उनसे इनसे जिनसे मुझसे तुझसे हमसे तुमसे आपसे सबसे",
    "इस": "उस किस जिस",
}

# --- Verb -------------------------------------------------------------------------------------------------------------

# Endings count only on these stems. A stop list of nouns alone cannot hold the short endings: -ता makes abstract nouns
# (सुंदरता), -नी, -ई, -के and -ा end tens of thousands of nouns. A verb missing here is added here. Stems in -वा- made from
# a listed stem (करवा, बनवा) need no entry.
STEMS = """
अकड़ अकुला अखर अघा अटक अटका अड़ अपना आ आँक आजमा आलाप इठला इतरा उकता उकसा उखड़ उखाड़ उग उगल उगा उघाड़ उचक उचट उचार
उछल उछाल उजड़ उजाड़ उठ उठा उड़ उड़ा उड़ेल उतर उतार उधेड़ उपज उपजा उफन उबर उबल उबार उबाल उभर उभार उमड़ उलझ उलझा उलट
उलीच ऊँघ ऊब ऐंठ ओढ़ ओढ़ा कचोट कट कटा कड़क कतर कतरा कमा कर करवा करा कराह कलप कस कसक कह कहलवा कहला काँप काट काढ़ कात
किचकिचा किलक कुचल कुढ़ कुतर कुम्हला कुरेद कूक कूट कूद कोस कौंध खटक खटका खटखटा खड़खड़ा खदेड़ खनक खप खपा खरीद खरोंच
खसक खा खाँस खिंच खिंचवा खिझा खिल खिलखिला खिलवा खिला खिसक खिसका खिसिया खींच खीझ खुजला खुद खुदवा खुरच खुल खुलवा खेल
खेला खो खोज खोद खोल खौल खौला गँवा गड़ गढ़ गरज गरमा गल गला गा गाड़ गिड़गिड़ा गिन गिनवा गिना गिर गिरवा गिरा गुँथ
गुजरवा गुज़र गुज़ार गुदगुदा गुनगुना गुर्रा गूँज गूँथ गूँद घट घटा घबड़ा घबरा घसीट घिघिया घिर घिस घुट घुमड़ घुमा घुल
घुस घुसा घुसेड़ घूम घूर घेर घोंट घोट घोल चकरा चख चखा चट चटक चढ़ चढ़वा चढ़ा चबा चमक चमका चर चरा चल चलवा चला चहक चहचहा
चाट चाह चिढ़ चिढ़ा चिपक चिपका चिपट चिल्ला चीख चीन्ह चीर चुक चुका चुग चुन चुनवा चुभ चुभा चुरा चूक चूम चूस चेता चौंक
चौंका छँट छक छटपटा छन छप छपवा छल छलक छा छाँट छान छाप छिटक छिड़ छिड़क छिन छिप छिपा छिल छीन छील छुट छुड़वा छुड़ा छुप
छुपा छू छूट छेड़ छेद छोड़ जँच जकड़ जग जगमगा जगा जचा जड़ जतला जता जप जम जमा जल जलवा जला जा जाँच जाग जान जी जीत जुट
जुटा जुड़ जुड़वा जुत जूझ जोड़ जोत झंझोड़ झगड़ झटक झड़ झनझना झपक झपका झपट झर झल झलक झल्ला झाँक झाड़ झिझक झिड़क झुँझला
झुक झुका झुठला झुलस झुलसा झुला झूम झूल झेंप झेल झोंक टकरा टटोल टपक टपका टल टहल टाँक टाँग टाल टिक टिका टिमटिमा टूट
टेक टोक ठग ठन ठहर ठहरा ठिठक ठिठुर ठुकरा ठुमक ठूँस ठेल ठोंक ठोक डकार डगमगा डर डरवा डरा डस डाँट डाल डिग डुबा डुबो डूब
डोल ढँक ढक ढकेल ढल ढलक ढह ढा ढाँप ढाल ढूँढ ढूँढ़ ढो तड़क तड़प तड़पा तन तप तपा तरस तरसा तरेर तल तलाश ताक ताड़ तान ताप
तुड़वा तुल तैर तैरा तोड़ तोल तौल त्याग थक थका थपथपा थम थमा थरथरा थर्रा थाम थिरक थूक थोप दब दबक दबवा दबा दबोच दमक दरक
दर्शा दहक दहल दहाड़ दिख दिखलवा दिखला दिखा दिलवा दिला दीख दुख दुखा दुत्कार दुबक दुलार दुह दुहरा दे देख दोहरा दौड़
दौड़ा धँस धँसा धकेल धड़क धधक धमका धर धरा धिक्कार धुल धुलवा धुला धो नकार नचा नहला नहा नाच नाप निकल निकलवा निकाल निखर
निखार निगल निचोड़ निपट निपटा निबट निबटा निभ निभा निवार निहार नोच न्योत पक पकड़ पकड़वा पकड़ा पका पगला पच पचा पछता पटक
पटा पठा पड़ पढ़ पढ़वा पढ़ा पधार पनप परख परोस पल पलट पला पसर पसार पसीज पहचान पहन पहनवा पहना पहुँच पहुँचवा पहुँचा पा
पाट पाल पिघल पिघला पिट पिटवा पिरो पिलवा पिला पिस पी पीट पीस पुकार पुचकार पुछवा पुत पूछ पूज पेर पैठ पोंछ पोत पोस फँस
फँसा फट फटक फटकार फड़क फड़फड़ा फरमा फहर फहरा फाँद फाड़ फिर फिरा फिसल फुँक फुदक फुसफुसा फुसला फूँक फूट फूल फेंक फेंट
फेर फैल फैला फोड़ बँट बँटा बँध बँधवा बँधा बक बख्श बघार बच बचा बज बजवा बजा बटोर बड़बड़ा बढ़ बढ़वा बढ़ा बतला बता बतिया
बदल बदलवा बदला बन बनवा बना बरत बरस बरसा बलबला बस बसा बह बहक बहका बहला बहा बाँच बाँट बाँध बिक बिकवा बिखर बिखरा बिखेर
बिगड़ बिगाड़ बिचक बिछ बिछड़ बिछवा बिछा बिछुड़ बिठला बिठा बिता बिदक बिलख बिलबिला बिसर बिसरा बिसूर बींध बीत बीन बुझ
बुझा बुन बुनवा बुलवा बुला बुहार बूझ बेच बेध बैठ बैठा बो बोल बोलवा बौखला ब्याह भगा भटक भटका भड़क भड़का भनक भभक भर
भरमा भरवा भाँप भाग भिगो भिड़ भिड़ा भिनभिना भींच भीग भुगत भुगता भुन भुनभुना भुना भुला भूँक भूँज भून भूल भेंट भेज
भेजवा भेद भोग भौंक मँगवा मँगा मँडरा मंडरा मच मचल मचा मटक मढ़ मथ मनवा मना मर मरवा मरोड़ मल मसल महक माँग माँज मान माप
मार मिचला मिट मिटा मिमिया मिल मिलवा मिला मुँद मुकर मुड़ मुरझा मुसकरा मुसकुरा मुस्करा मुस्कुरा मूँड़ मूँद मेट मोड़
रँग रँगवा रख रखवा रगड़ रच रचवा रचा रट रम रमा रह रिझा रिस रीझ रुक रुकवा रुला रूठ रेंग रो रोक रोप रौंद लग लगवा लगा लचक
लजा लटक लटका लड़ लड़खड़ा लड़ा लताड़ लद लदवा लपक लपका लपट लपेट लरज ललक ललकार ललचा लहरा लहलहा ला लाँघ लाद लिख लिखवा
लिखा लिटा लिपट लिपटा लीप लुट लुटा लुढ़क लुढ़का लुभा लूट ले लेट लेटा लोट लौट लौटा वसूल विचर विचार विराज शरमा शर्मा
सँभल सँभाल सँवर सँवार संभल संभाल सक सकपका सकुचा सज सजवा सजा सट सटक सटा सड़ सड़ा सता सनक समझ समझा समा समेट सम्हाल सरक
सरका सराह सह सहम सहमा सहला साध सिकुड़ सिकोड़ सिखला सिखा सिधार सिमट सिल सिलवा सिसक सिहर सी सींच सीख सुखा सुझा सुड़क
सुधर सुधरवा सुधार सुन सुनवा सुना सुबक सुलग सुलगा सुलझ सुलझा सुलवा सुला सुहा सूँघ सूख सूज सूझ सेंक सो सोंप सोख सोच
सौंप सौंपवा स्वीकार हँस हँसा हकला हट हटवा हटा हड़प हथिया हरवा हरा हाँक हाँफ हार हिचक हिचकिचा हिनहिना हिल हिलग हिला
हिलोर हो
"""

# Words spelt like a form of a listed stem that are mostly something else: nouns (सोना gold, गली street, लड़के boys),
# the numeral दो, adverbs (कहीं somewhere, सही right), the negation मत.
STOP_WORDS = """
पिता माता पता सीता छाता सपना सपने अपना अपने अपनी सोना रचना घटना जमाना जमाने बहाना बहाने पानी गिनती गलती धरती धोती छाती
सोने सपनों लड़का लड़के लड़की सड़के छिलका छिलके झटका झटके मटका मटके तड़का तड़के गाड़ी गली पूजा झगड़ा झगड़े सजा छाया ढाई
कहीं सही खुदा तुलना दुखी बजे रमा गला गले धोनी सोनी साधना झाड़ी पोता पोते पोती घुटना घुटने तलाशी जड़ें बसें झूला दुलारी सीने झरना
झरने ताना तना तने तले डोली खाँसी चटनी बरसाती मसले झोंका झोंके साधो मानो बनिये
लड़ाई पढ़ाई कमाई सिलाई बुनाई कटाई खुदाई चढ़ाई छपाई धुलाई पिटाई
"""

ENDINGS_ANY = {"participle": "ता ते ती तीं", "infinitive": "ना ने नी", "absolutive": "कर के"}
ENDINGS_AFTER_CONSONANT = {
    "perfective": "ा े ी ीं",  # -े is the subjunctive too; one mark either way
    "future": "ेगा ेगी ेंगे ेंगी ूंगा ूंगी ोगे ोगी िएगा",
    "mood": "ूं ें ो िए िये",
}
ENDINGS_AFTER_VOWEL = {
    "perfective": "या ए ये ई यी ईं यीं आ",  # आ: छुआ
    "future": "एगा येगा एगी येगी एंगे येंगे एंगी येंगी ऊंगा ऊंगी ओगे ओगी यगा यगी यंगे वेगा वेगी वेंगे इएगा",
    "mood": "ऊं एं यें ओ इए इये वे वें",
}
# Forms no rule gives. By verb, because जाना makes the passive and करना and होना make conjunct verbs.
IRREGULAR = {
    "हो": {
        "copula": "है हैं हूं था थी थे थीं",
        "mood": "हो हों होऊं होओ होइए",
        "future": "होगा होगी होंगे होंगी होगे हूंगा हूंगी",
        "perfective": "हुआ हुई हुए हुये हुयी हुईं",
    },
    "जा": {"perfective": "गया गई गयी गए गये गईं गयीं"},
    # की is left out: nine in ten are the genitive. Only before a form of जाना is it read as a verb (की गई).
    "कर": {"perfective": "किया किए किये कीं", "mood": "कीजिए कीजिये कीजिएगा"},
    "दे": {
        "perfective": "दिया दी दीं दिए दिये",  # दो is left out: it is the numeral far more often
        "mood": "दूं दें दीजिए दीजिये दीजिएगा",
        "future": "दूंगा दूंगी देगा देगी देंगे देंगी दोगे दोगी",
    },
    "ले": {
        "perfective": "लिया ली लीं लिए लिये",
        "mood": "लूं लें लो लीजिए लीजिये लीजिएगा",
        "future": "लूंगा लूंगी लेगा लेगी लेंगे लेंगी लोगे लोगी",
    },
    "पी": {"mood": "पीजिए पीजिये"},
    "चाह": {"mood": "चाहिए चाहिये चाहिएं"},
}
# Follow a bare stem as auxiliaries (पढ़ रहा, पढ़ सका, पढ़ चुका): the stem before them carries no mark of its own.
STEM_AUXILIARIES = "रह सक चुक"
# जाना after these is motion, not a passive: चला गया is one compound verb.
MOTION_PERFECTIVES = "चला चली चले"

# --- Compound ---------------------------------------------------------------------------------------------------------

VECTORS = "ले दे जा आ डाल पड़ उठ बैठ रख"  # stems of लेना देना जाना आना डालना पड़ना उठना बैठना रखना
# Stems that, bare, are mostly other words: my own, -ji, bus and enough, moment, flower, like, world, self, colour ...
NOT_BARE = "अपना जी बस पल फूल सी जग सजा खुद रँग विचार शर्मा तन जड़ टाँग पोत"

# Nouns and adjectives that होना turns into an event (शुरू हुआ). A closed list, since noun + होना is mostly a copula.
HONA_HOSTS = """
शुरू आरंभ आरम्भ प्रारंभ प्रारम्भ खत्म समाप्त बंद बन्द पैदा उत्पन्न मालूम ज्ञात विदित पसंद पता पूरा पूरी पूरे प्राप्त
प्रकट प्रगट प्रकाशित प्रसन्न प्रभावित स्थापित स्थित शामिल सम्मिलित तैयार राजी खड़ा खड़ी खड़े विदा विवाह शादी जन्म
मृत्यु निधन देहांत दर्द प्यार प्रेम विश्वास यकीन महसूस अनुभव आभास प्रतीत दिखाई निर्माण प्रयोग उपयोग इस्तेमाल विकास
विस्तार परिवर्तन बदलाव सुधार वृद्धि कमी प्रवेश प्रयास बातचीत चर्चा हमला गिरफ्तार फरार घायल बीमार मजबूर नाराज गुस्सा
दुखी खुश परेशान हैरान चकित निराश सफल असफल विफल स्वीकार मंजूर संपन्न सम्पन्न आयोजित निर्भर जमा इकट्ठा एकत्र एकत्रित
नष्ट बर्बाद तबाह साफ सिद्ध साबित घोषित जारी लागू हासिल दाखिल भर्ती रवाना गायब अदृश्य मुक्त आजाद रिहा अलग दूर अफसोस
दुख खुशी आश्चर्य चिंता इलाज भेंट मुलाकात दर्शन परिचय
"""
# करना makes nearly any noun or adjective an event, so its host is any word that is none of these, no postposition and
# no form of a verb.
NOT_HOSTS = """
मैं तू हम तुम आप यह वह ये वे वो जो कौन क्या कोई कुछ सब सभी स्वयं खुद उस इस किस जिस उन इन किन जिन मुझ तुझ किसी
उसी इसी यही वही न नहीं ना मत ही भी तो और या व एवं तथा पर मगर लेकिन किंतु परंतु कि क्योंकि इसलिए अगर यदि हां अब
तब जब कब अभी तभी कभी फिर यहां वहां जहां कहां कहीं यहीं वहीं ऐसा ऐसी ऐसे वैसा वैसी वैसे कैसा कैसी कैसे जैसा जैसी
जैसे इतना इतनी इतने उतना उतनी उतने कितना कितनी कितने जितना जितनी जितने बहुत अधिक ज्यादा कम खूब थोड़ा थोड़ी थोड़े
केवल सिर्फ मात्र बस आज कल परसों रोज हमेशा सदा अक्सर पहले बाद आगे पीछे ऊपर नीचे साथ बाहर भीतर अपना अपनी अपने लिए
लिये द्वारा ओर तरफ तरह एक दो तीन चार पांच जी वाला वाली वाले सकना क्यों यूं यों शायद जरूर अवश्य सा सी से
"""

# A relative word answered by its correlate later in the sentence: one mark a sentence and row. The specification's four
# pairs with their inflected forms, then three pairs of the same build.
CORRELATIVES = (
    (
        "जो जिस जिन जिसने जिन्होंने जिसे जिन्हें जिसको जिनको जिसका जिसकी जिसके जिनका जिनकी जिनके जिससे जिनसे जिसमें जिनमें जिसपर",
        "वह वे वो वही उस उन उसी उसने उन्होंने उसे उन्हें उसको उनको उसका उसकी उसके उनका उनकी उनके उससे उनसे उसमें उनमें उसपर",
    ),
    ("जब जबसे", "तब तबसे तभी तो"),  # तो answers जब more often than तब does
    ("जहां", "वहां वहीं"),
    ("यदि अगर", "तो"),
    ("जैसा जैसी जैसे", "वैसा वैसी वैसे"),
    ("जितना जितनी जितने", "उतना उतनी उतने"),
    ("जिधर", "उधर"),
)

# --- Counting: from here on code --------------------------------------------------------------------------------------


class Features(NamedTuple):
    """Counts of each document, int64 arrays of shape (N,)."""

    words: np.ndarray
    case: np.ndarray
    verb: np.ndarray
    compound: np.ndarray


class Block(NamedTuple):
    """Some documents as one sequence of item ids: words, and the three kinds of gap a rule must see."""

    items: np.ndarray  # int32 (M,)
    document: np.ndarray  # int32 (M,), the position of the document each item belongs to


# Item ids: end of a sentence, other punctuation, joint of a compound; words from 3 on.
STRONG, WEAK, HYPHEN, FIRST_WORD = range(4)
BLOCK_ITEMS = 1 << 19  # bounds the memory of the rules to some tens of MB

# \w leaves out the vowel signs, so marks are named: combining, Arabic, Devanagari, and the other Indic blocks.
_LETTER = r"(?:[^\W_]|[\u0300-\u036f\u064b-\u0652\u0900-\u0963\u0971-\u0dff])"
_WORD = re.compile(rf"\d+(?:[.,:]\d+)+|{_LETTER}+")
_SENTENCE_END = re.compile(r"[।॥?!.…]")
_HYPHENS = frozenset("-\u2010\u2011\u2013")
_INVISIBLE = {0x200B: None, 0x200C: None, 0x200D: None, 0xFEFF: None, 0x00AD: None}
_FOLD = {0x200C: None, 0x200D: None, 0x093C: None, 0x0901: 0x0902}


def lookup_form(word: str) -> str:
    """`word` as the tables hold it: no ZWJ, ZWNJ or nukta, ँ as ं."""
    # NFD also takes apart ऩ ऱ ऴ, which NFC keeps whole.
    return unicodedata.normalize("NFD", word).translate(_FOLD)


class WordStream:
    """Splits documents into words and gives each distinct word an id; `words[id]` is its text in NFC.

    A word is a run of letters, marks and digits; the parts of a hyphenated compound are words of their own.
    """

    def __init__(self) -> None:
        self.words = ["।", ",", "-"]
        self._ids: dict[str, int] = {}
        self._tokens = _Tokens(self._split)

    def blocks(self, documents: Iterable[str]) -> Iterator[Block]:
        """The documents in order, some hundred thousand items at a time; each document ends with STRONG."""
        tokens, ends, first, done = array("i"), array("i"), 0, 0
        for done, text in enumerate(documents, start=1):
            # A line end is a sentence end: corpora hold one sentence a line where punctuation was stripped.
            tokens.extend(map(self._tokens.__getitem__, text.replace("\n", " । ").split()))
            tokens.append(self._tokens["।"])
            ends.append(len(tokens))
            if len(tokens) >= BLOCK_ITEMS:
                yield self._block(tokens, ends, first)
                tokens, ends, first = array("i"), array("i"), done
        if ends:
            yield self._block(tokens, ends, first)

    def _block(self, tokens: array, ends: array, first: int) -> Block:
        token = np.frombuffer(tokens, dtype=np.int32)
        end = np.frombuffer(ends, dtype=np.int32)
        document = np.repeat(np.arange(first, first + len(end), dtype=np.int32), end - np.append(0, end[:-1]))
        bounds = np.frombuffer(self._tokens.bounds, dtype=np.int32)
        length = bounds[token + 1] - bounds[token]
        shift = bounds[token] - (np.cumsum(length) - length)
        items = np.frombuffer(self._tokens.parts, dtype=np.int32)
        # Copies throughout: the buffers behind these views must be free to grow again.
        return Block(items[np.repeat(shift, length) + np.arange(length.sum())], np.repeat(document, length))

    def _split(self, token: str) -> list[int]:
        """Item ids of one whitespace-separated token."""
        token = unicodedata.normalize("NFC", token).translate(_INVISIBLE)
        items: list[int] = []
        end = 0
        for match in _WORD.finditer(token):
            gap = token[end : match.start()]
            if gap:
                items.append(HYPHEN if end and gap in _HYPHENS else _gap(gap))
            items.append(self._ids.setdefault(match[0], len(self.words)))
            if items[-1] == len(self.words):
                self.words.append(match[0])
            end = match.end()
        if token[end:]:
            items.append(_gap(token[end:]))
        return items


def _gap(text: str) -> int:
    return STRONG if _SENTENCE_END.search(text) else WEAK


class _Tokens(dict[str, int]):
    """Whitespace-separated token -> number; the items of number n are `parts[bounds[n]:bounds[n + 1]]`."""

    def __init__(self, split: Callable[[str], list[int]]) -> None:
        super().__init__()
        self._split = split
        self.parts: array = array("i")
        self.bounds: array = array("i", [0])

    def __missing__(self, token: str) -> int:
        number = len(self)
        self.parts.extend(self._split(token))
        self.bounds.append(len(self.parts))
        self[token] = number
        return number


def count_words(documents: Sequence[str]) -> np.ndarray:
    """Words of each document, int64 of shape (N,); see WordStream for what a word is."""
    counts = np.zeros(len(documents), dtype=np.int64)
    for block in WordStream().blocks(documents):
        counts += np.bincount(block.document[block.items >= FIRST_WORD], minlength=len(documents))
    return counts


def count_features(documents: Sequence[str]) -> Features:
    """Case, verb and compound marks and words of each document.

    Case: one a postposition, one a fused pronoun, one a compound postposition as a whole.
    Verb: one an inflected verb form or auxiliary, none a bare stem; one more for -वा- in either, and for a passive.
    Compound: one a pair of stem and vector verb, of noun or adjective and करना or होना; one a joint of a hyphenated
    compound, one a spaced reduplication, one a correlative pair in a sentence.
    """
    n = len(documents)
    counts = np.zeros((4, n), dtype=np.int64)
    stream = WordStream()
    known = np.zeros(0, dtype=np.int64)
    tails = np.zeros(0, dtype=np.int16)
    for block in stream.blocks(documents):
        new = [lookup_form(word) for word in stream.words[len(known) :]]
        if len(known) == 0:
            new[:FIRST_WORD] = [""] * FIRST_WORD
        known = np.append(known, np.array([classify(word) for word in new], dtype=np.int64))
        tails = np.append(tails, np.array([_tables().tails.get(word, 0) for word in new], dtype=np.int16))
        case, verb, *compound = _marks(block.items, known[block.items], tails[block.items])
        counts[0] += np.bincount(block.document[block.items >= FIRST_WORD], minlength=n)
        counts[1] += np.bincount(block.document[case], minlength=n)
        counts[2] += np.bincount(block.document, weights=verb, minlength=n).astype(np.int64)
        for where in compound:
            counts[3] += np.bincount(block.document[where], minlength=n)
    return Features(*counts)


@cache
def rules_digest() -> str:
    """Hash of this file, tables and rules, for caches of what it computes."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


# What one word can be, as bits.
CASE, VERB, CAUSATIVE, PERFECTIVE, BARE, COPULA, AUXILIARY, VECTOR = (1 << i for i in range(8))
JANA, KARNA, HONA, MOTION, KI, KE, KAR, HOST, HONA_HOST, LETTERS = (1 << i for i in range(8, 18))
HEAD = 18  # two or three bits: which row of COMPOUND_POSTPOSITIONS, from 1; 0 for none
RELATIVE = 24  # from here two bits for each row of CORRELATIVES: relative, correlate


class _Tables(NamedTuple):
    """The tables above in look-up form."""

    stems: frozenset[str]
    endings: dict[str, list[tuple[str, bool | None]]]  # ending -> kinds, and whether the stem must end in a vowel
    irregular: dict[str, list[tuple[str, str]]]  # form -> (stem, kind)
    words: dict[str, int]  # word -> bits that do not depend on a rule
    blocked: frozenset[str]
    not_bare: frozenset[str]
    stem_bits: dict[str, int]
    tails: dict[str, int]  # word after the head of a compound postposition -> code, from 1
    one: np.ndarray  # bool (heads, codes): head and one word
    two: np.ndarray  # bool (heads, codes, codes): head and two words


def _listed(text: str) -> list[str]:
    return [lookup_form(word) for word in text.split()]


@cache
def _tables() -> _Tables:
    endings: dict[str, list[tuple[str, bool | None]]] = {}
    for table, vowel in ((ENDINGS_ANY, None), (ENDINGS_AFTER_CONSONANT, False), (ENDINGS_AFTER_VOWEL, True)):
        for kind, text in table.items():
            for ending in _listed(text):
                endings.setdefault(ending, []).append((kind, vowel))
    irregular: dict[str, list[tuple[str, str]]] = {}
    for stem, kinds in IRREGULAR.items():
        for kind, text in kinds.items():
            for form in _listed(text):
                irregular.setdefault(form, []).append((lookup_form(stem), kind))
    stem_bits: dict[str, int] = {}
    for text, bit in (
        (VECTORS, VECTOR), (STEM_AUXILIARIES, AUXILIARY), ("जा", JANA), ("कर करा करवा", KARNA), ("हो", HONA),
    ):  # fmt: skip
        for stem in _listed(text):
            stem_bits[stem] = stem_bits.get(stem, 0) | bit
    return _Tables(
        frozenset(_listed(STEMS)), endings, irregular, _word_bits(), frozenset(_listed(STOP_WORDS)),
        frozenset(_listed(NOT_BARE)), stem_bits, *_compound_postpositions(),
    )  # fmt: skip


def _word_bits() -> dict[str, int]:
    bits: dict[str, int] = {}

    def add(text: str, bit: int) -> None:
        for word in _listed(text):
            bits[word] = bits.get(word, 0) | bit

    add(POSTPOSITIONS + " " + POSTPOSITION_SLIPS, CASE)
    for stems, postpositions in FUSED_PRONOUNS:
        for stem in stems.split():
            add(" ".join(stem + postposition for postposition in postpositions.split()), CASE)
    add(MOTION_PERFECTIVES, MOTION)
    add(HONA_HOSTS, HONA_HOST)
    for word, bit in (("की", KI), ("के", KE), ("कर", KAR)):
        add(word, bit)
    for row, (head, _) in enumerate(COMPOUND_POSTPOSITIONS.items(), start=1):
        add(head + " " + COMPOUND_HEADS[head], row << HEAD)
    for row, (relative, correlate) in enumerate(CORRELATIVES):
        add(relative, 1 << (RELATIVE + 2 * row))
        add(correlate, 2 << (RELATIVE + 2 * row))
    return bits


def _compound_postpositions() -> tuple[dict[str, int], np.ndarray, np.ndarray]:
    tails: dict[str, int] = {}
    entries = []
    for row, listed in enumerate(COMPOUND_POSTPOSITIONS.values(), start=1):
        for entry in "".join(listed).split(","):
            entries.append((row, [tails.setdefault(word, len(tails) + 1) for word in _listed(entry)]))
    heads, codes = len(COMPOUND_POSTPOSITIONS) + 1, len(tails) + 1
    one, two = np.zeros((heads, codes), dtype=bool), np.zeros((heads, codes, codes), dtype=bool)
    for row, words in entries:
        if len(words) == 1:
            one[row, words[0]] = True
        else:
            two[row, words[0], words[1]] = True
    return tails, one, two


def _ends_in_vowel(stem: str) -> bool:
    return "\u0904" <= stem[-1] <= "\u0914" or "\u093e" <= stem[-1] <= "\u094c"


def _stem(text: str) -> str | None:
    """The listed stem that `text` spells, or None. The long vowel of पी and छू is short before a vowel: पिया, छुआ."""
    stems = _tables().stems
    # Only a consonant takes the causative -वा-: बढ़ावा, पछतावा, जावा are nouns.
    if text in stems or (text.endswith("वा") and text[:-2] in stems and not _ends_in_vowel(text[:-2])):
        return text
    long = text[:-1] + {"\u093f": "\u0940", "\u0941": "\u0942"}.get(text[-1:], "-")
    return long if long in stems else None


def analyses(word: str) -> list[tuple[str, str]]:
    """Every (stem, kind) that `word`, in look-up form, may be; kind is a key of the ending tables, copula or bare."""
    tables = _tables()
    if word in tables.blocked:
        return []
    found = list(tables.irregular.get(word, ()))
    if (word not in tables.not_bare) and word and _stem(word) == word:
        found.append((word, "bare"))
    for size in range(1, min(len(word), 6)):
        for kind, vowel in tables.endings.get(word[-size:], ()):
            stem = _stem(word[:-size])
            if stem and vowel in (None, _ends_in_vowel(stem)):
                found.append((stem, kind))
    return found


def classify(word: str) -> int:
    """The bits of `word`, in look-up form."""
    tables = _tables()
    bits = tables.words.get(word, 0)
    for stem, kind in () if bits & CASE else analyses(word):
        bits |= tables.stem_bits.get(stem, 0)
        bits |= {"bare": BARE, "perfective": VERB | PERFECTIVE, "copula": VERB | COPULA}.get(kind, VERB)
        if stem.endswith("वा") and stem != "गंवा":  # गँवाना, to lose, is no causative
            bits |= CAUSATIVE
    if any("\u0904" <= letter <= "\u0939" for letter in word):
        bits |= LETTERS
        if not bits & (CASE | VERB) and word not in _not_hosts():
            bits |= HOST
    return bits


@cache
def _not_hosts() -> frozenset[str]:
    return frozenset(_listed(NOT_HOSTS))


def _next(flags: np.ndarray, by: int = 1) -> np.ndarray:
    """`flags` of the item `by` places later; False past the end."""
    return np.append(flags[by:], np.zeros(min(by, len(flags)), dtype=flags.dtype))


def _previous(flags: np.ndarray) -> np.ndarray:
    return np.append(np.zeros(1, dtype=flags.dtype), flags[:-1])


def _marks(items: np.ndarray, bits: np.ndarray, tails: np.ndarray) -> list[np.ndarray]:
    """Marks a block holds: case and verb marks of each item, then arrays of the positions of compound marks."""

    def are(bit: int) -> np.ndarray:
        return (bits & bit) != 0

    compound_head, inside = _find_compound_postpositions(bits, tails)
    bare, jana, kar, perfective = are(BARE), are(JANA), are(KAR), are(PERFECTIVE) & ~inside
    vector = are(VECTOR) & ~inside
    motion = are(MOTION) & _next(jana)
    ki_verb = are(KI) & _next(jana)
    passive = (perfective & ~are(MOTION) | ki_verb) & _next(jana)
    bare_vector = bare & _next(vector) & ~passive & ~motion & ~inside
    stem_only = bare_vector | (bare & _next(are(AUXILIARY)))
    ke_verb = are(KE) & _previous(kar)
    bare_kar = kar & _previous(bare) & ~_next(are(AUXILIARY) | vector)

    case = (are(CASE) & ~inside & ~ki_verb & ~ke_verb) | compound_head
    verb = (are(VERB) & ~inside & ~stem_only).astype(np.int8)
    verb += are(CAUSATIVE)
    verb += passive
    verb += ki_verb
    verb += bare_kar | (kar & _next(ke_verb))

    conjunct = are(HOST) & ~inside & _next(are(KARNA) & ~bare_kar)
    conjunct |= are(HONA_HOST) & ~inside & _next(are(HONA) & ~are(COPULA))
    doubled = (items == _next(items)) & are(LETTERS) & ~are(CASE | COPULA)
    joint = (items == HYPHEN) & _previous(are(LETTERS)) & _next(are(LETTERS))
    pairs = (bare_vector | motion, conjunct, doubled, joint)
    return [case, verb, *(np.flatnonzero(found) for found in pairs), *_correlatives(items, bits)]


def _find_compound_postpositions(bits: np.ndarray, tails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a compound postposition begins, and which items are its later words; bool arrays of the items' shape."""
    tables = _tables()
    begins, inside = np.zeros(len(bits), dtype=bool), np.zeros(len(bits), dtype=bool)
    head = np.flatnonzero(((bits >> HEAD) & 7 != 0) & (_next(tails) > 0))
    row, first, second = (bits[head] >> HEAD) & 7, tails[head + 1], _next(tails, 2)[head]
    long = tables.two[row, first, second]
    found = head[long | tables.one[row, first]]
    begins[found] = True
    inside[found + 1] = True
    inside[head[long] + 2] = True
    return begins, inside


def _correlatives(items: np.ndarray, bits: np.ndarray) -> Iterator[np.ndarray]:
    """For each row of CORRELATIVES, positions of the first relative word of each sentence that a later one answers."""
    sentence = np.cumsum(items == STRONG)
    for row in range(len(CORRELATIVES)):
        relative = np.flatnonzero(bits & (1 << (RELATIVE + 2 * row)))
        correlate = np.flatnonzero(bits & (2 << (RELATIVE + 2 * row)))[::-1]
        number, first = np.unique(sentence[relative], return_index=True)
        answered, last = np.unique(sentence[correlate], return_index=True)
        _, here, there = np.intersect1d(number, answered, assume_unique=True, return_indices=True)
        start, end = relative[first[here]], correlate[last[there]]
        yield start[start < end]
